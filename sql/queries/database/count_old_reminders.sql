-- What delete_old_reminders would delete.
SELECT count(*)
FROM cert_notification_log AS l
WHERE l.status IN ('sent', 'cancelled', 'superseded')
    AND greatest(l.queued_at, l.sent_at, l.next_attempt_at) < %(before)s
    AND l.expires_on < %(before_on)s::date - greatest(-l.threshold_days, 0)
    AND NOT EXISTS (
        SELECT
        FROM jsonb_array_elements(l.history) AS cycle
        WHERE (cycle ->> 'expires_on')::date >= %(before_on)s::date - greatest(-l.threshold_days, 0)
    )
