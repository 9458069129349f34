-- Reminders that could not be delivered, until they are sent, superseded or 14 days past their day. Also those that the
-- recipient's server has put off for more than a day, as when a mailbox is full: they are tried again until it is too late
-- for them, and nobody would have heard of it.
SELECT l.id AS reminder_id, l.mentor_id, m.organisation_id, m.member_no, coalesce(m.full_name, m.member_no) AS full_name,
    l.threshold_days, l.cert_id, l.expires_on, l.last_error AS error, l.attempts, l.queued_at
FROM cert_notification_log AS l
JOIN mentors AS m ON m.id = l.mentor_id
WHERE (
        l.status = 'failed'
        OR (l.status = 'pending' AND l.attempts >= 3 AND l.queued_at < now() - interval '1 day')
    )
    -- Its day is that of the threshold, or when it was queued late, as after an import, the day it was queued.
    AND greatest(l.expires_on - l.threshold_days, l.queued_at::date) + 14 >= %(today)s
ORDER BY l.queued_at, l.id
