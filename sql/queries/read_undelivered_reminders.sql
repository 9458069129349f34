-- Reminders that failed since the last digest and still are.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, l.expires_on, coalesce(l.last_error, '') AS error
FROM cert_notification_log AS l
JOIN mentors AS m ON m.id = l.mentor_id
WHERE l.status = 'failed'
    AND l.next_attempt_at >= %(covers_from)s
    AND l.next_attempt_at < %(covers_until)s
    AND m.organisation_id = %(organisation_id)s
ORDER BY l.next_attempt_at, l.id
