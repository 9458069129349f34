-- Back again: certjob lifted its pause since the last digest, and has not opened another.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no,
    bool_or(EXISTS (SELECT FROM mentor_pauses AS o WHERE o.mentor_id = m.id AND o.lifted_at IS NULL)) AS still_paused
FROM mentor_pauses AS p
JOIN mentors AS m ON m.id = p.mentor_id
WHERE p.reason = 'certification_expired'
    AND p.lifted_at >= %(covers_from)s
    AND p.lifted_at < %(covers_until)s
    AND p.lifted_by = 'certjob'
    AND m.organisation_id = %(organisation_id)s
    AND NOT EXISTS (
        SELECT FROM mentor_pauses AS o WHERE o.mentor_id = m.id AND o.reason = p.reason AND o.lifted_at IS NULL
    )
GROUP BY m.id
ORDER BY name, m.member_no
