-- Back again: certjob lifted its pause, and has not opened another.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name, m.member_no,
    EXISTS (SELECT FROM mentor_pauses AS o WHERE o.mentor_id = m.id AND o.lifted_at IS NULL) AS still_paused,
    'back:' || p.id AS line
FROM (
    SELECT DISTINCT ON (e.mentor_id) e.id, e.mentor_id
    FROM mentor_pauses AS e
    WHERE e.reason = 'certification_expired' AND e.lifted_at >= %(since)s AND e.lifted_by = 'certjob'
    ORDER BY e.mentor_id, e.lifted_at DESC, e.id
) AS p
JOIN mentors AS m ON m.id = p.mentor_id
WHERE m.organisation_id = %(organisation_id)s
    AND NOT EXISTS (
        SELECT FROM mentor_pauses AS o
        WHERE o.mentor_id = p.mentor_id AND o.reason = 'certification_expired' AND o.lifted_at IS NULL
    )
ORDER BY name, m.member_no
