-- Paused by certjob, and still. Reopened: a person had lifted the pause before.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name, m.member_no,
    EXISTS (
        SELECT
        FROM mentor_pauses AS e
        WHERE e.mentor_id = p.mentor_id
            AND e.reason = p.reason
            AND e.lifted_at BETWEEN p.paused_at - interval '7 days' AND p.paused_at
            AND e.lifted_by IS DISTINCT FROM 'certjob'
    ) AS reopened,
    'paused:' || p.id AS line
FROM mentor_pauses AS p
JOIN mentors AS m ON m.id = p.mentor_id
WHERE p.reason = 'certification_expired'
    AND p.paused_at >= %(since)s
    AND p.lifted_at IS NULL
    AND m.organisation_id = %(organisation_id)s
ORDER BY name, m.member_no
