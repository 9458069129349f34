-- Upper bounds, without the rules: only a mentor with a revoked or past certificate and no pause of certjob's can be
-- newly paused, only one with such a pause can come back, and each certificate gives at most one reminder.
SELECT
    count(*) FILTER (
        WHERE own.id IS NULL
            AND EXISTS (
                SELECT FROM certificates AS c
                WHERE c.mentor_id = m.id AND (c.revoked_at IS NOT NULL OR c.expires_on < %(today)s)
            )
    ) AS may_pause,
    count(own.id) AS may_resume,
    coalesce(sum((SELECT count(*) FROM certificates AS c WHERE c.mentor_id = m.id)), 0)::bigint AS may_remind
FROM mentors AS m
LEFT JOIN mentor_pauses AS own
    ON own.mentor_id = m.id AND own.reason = 'certification_expired' AND own.lifted_at IS NULL
WHERE m.organisation_id = %(organisation_id)s AND m.review_on <= coalesce(%(due_by)s::date, 'infinity')
