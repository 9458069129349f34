-- Reminders that could not be delivered and are still worth a look; the same as read_failed_reminders lists.
SELECT count(*)
FROM cert_notification_log
WHERE status = 'failed' AND greatest(expires_on - threshold_days, queued_at::date) + 14 >= %(today)s
