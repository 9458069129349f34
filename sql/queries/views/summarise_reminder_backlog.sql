-- The reminders that wait for the mail, by age. No delay is longer than a day: what is due beyond that is due now.
SELECT
    count(*) AS open,
    count(*) FILTER (WHERE NOT claimed AND NOT later) AS due,
    count(*) FILTER (WHERE NOT claimed AND later) AS waiting,
    count(*) FILTER (WHERE claimed) AS in_flight,
    0 AS blocked,
    count(*) FILTER (WHERE queued_at < now() - interval '1 hour') AS older_than_hour,
    count(*) FILTER (WHERE queued_at < now() - interval '1 day') AS older_than_day,
    min(queued_at) AS oldest_at
FROM (
    SELECT
        queued_at,
        next_attempt_at > now() AND next_attempt_at <= now() + interval '25 hours' AS later,
        claim_token IS NOT NULL AND next_attempt_at > now() AND next_attempt_at <= now() + interval '25 hours' AS claimed
    FROM cert_notification_log
    WHERE status = 'pending'
) AS reminders
