-- Reminders that could not be delivered and are still worth a look; the same as read_failed_reminders lists.
SELECT count(*)
FROM cert_notification_log AS l
WHERE (
        l.status = 'failed'
        OR (l.status = 'pending' AND l.attempts >= 3 AND l.queued_at < now() - interval '1 day')
    )
    AND greatest(l.expires_on - l.threshold_days, l.queued_at::date) + 14 >= %(today)s
