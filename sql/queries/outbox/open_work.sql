-- name: read_open_work
-- Each part reads the partial index of the open rows of its table.
SELECT
    what,
    count(*) AS open,
    count(*) FILTER (WHERE status = 'pending' AND NOT later) AS due,
    count(*) FILTER (WHERE status = 'pending' AND later AND claim_token IS NULL) AS waiting,
    count(*) FILTER (WHERE status = 'pending' AND later AND claim_token IS NOT NULL) AS in_flight,
    count(*) FILTER (WHERE status = 'blocked') AS blocked,
    count(*) FILTER (WHERE since < now() - interval '1 hour') AS older_than_hour,
    count(*) FILTER (WHERE since < now() - interval '1 day') AS older_than_day,
    min(since) AS oldest_at
FROM (
    SELECT CASE WHEN visible THEN 'portal_shows' ELSE 'portal_hides' END AS what, status, wanted_at AS since,
        next_attempt_at > now() AS later, claim_token
    FROM portal_sync_events
    WHERE status IN ('pending', 'blocked')
    UNION ALL
    SELECT 'reminders', status, queued_at, next_attempt_at > now(), claim_token
    FROM cert_notification_log
    WHERE status = 'pending'
    UNION ALL
    SELECT 'digests', status, queued_at, next_attempt_at > now(), claim_token
    FROM coordinator_digests
    WHERE status = 'pending'
) AS intents
GROUP BY what
