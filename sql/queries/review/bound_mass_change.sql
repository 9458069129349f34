-- Upper bounds, without the rules: only a mentor with a revoked or past certificate and no pause of certjob's can be
-- newly paused, only one with such a pause can come back, and each certificate gives at most one reminder. Each due
-- mentor's pause is counted: joined, the planner reads those of everybody.
SELECT
    count(*) FILTER (
        WHERE own.open = 0
            AND EXISTS (
                SELECT FROM certificates AS c
                WHERE c.mentor_id = m.id AND (c.revoked_at IS NOT NULL OR c.expires_on < %(today)s)
            )
    ) AS may_pause,
    count(*) FILTER (WHERE own.open > 0) AS may_resume,
    coalesce(sum((SELECT count(*) FROM certificates AS c WHERE c.mentor_id = m.id)), 0)::bigint AS may_remind
FROM mentors AS m
CROSS JOIN LATERAL (
    SELECT count(*) AS open
    FROM mentor_pauses
    WHERE mentor_id = m.id AND reason = 'certification_expired' AND lifted_at IS NULL
) AS own
WHERE m.organisation_id = %(organisation_id)s AND m.review_on <= coalesce(%(due_by)s::date, 'infinity')
