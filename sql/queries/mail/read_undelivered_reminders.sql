-- Reminders that failed, as long as the alerts show them. One that fails again after a correction is another line; that a
-- mentor has no address is one, however many reminders there are;
-- that one is put off, however often it is tried.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, l.expires_on, coalesce(l.last_error, '') AS error,
    CASE WHEN l.last_error = 'no address' THEN 'noaddress:' || l.mentor_id
        WHEN l.status = 'pending' THEN 'late:' || l.id
        ELSE 'mail:' || l.id || ':' || extract(epoch FROM l.next_attempt_at) END AS line
FROM cert_notification_log AS l
JOIN mentors AS m ON m.id = l.mentor_id
WHERE (
        l.status = 'failed'
        OR (l.status = 'pending' AND l.attempts >= 3 AND l.queued_at < now() - interval '1 day')
    )
    AND greatest(l.expires_on - l.threshold_days, l.queued_at::date) + 14 >= %(today)s
    AND m.organisation_id = %(organisation_id)s
ORDER BY l.next_attempt_at, l.id
