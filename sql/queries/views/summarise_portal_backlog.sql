-- What waits for the portal, by age. No delay is longer than a day: what is due beyond that is due now, as the claim says.
SELECT
    visible,
    count(*) AS open,
    count(*) FILTER (WHERE status = 'pending' AND NOT claimed AND NOT later) AS due,
    count(*) FILTER (WHERE status = 'pending' AND NOT claimed AND later) AS waiting,
    count(*) FILTER (WHERE status = 'pending' AND claimed) AS in_flight,
    count(*) FILTER (WHERE status = 'blocked') AS blocked,
    count(*) FILTER (WHERE wanted_at < now() - interval '1 hour') AS older_than_hour,
    count(*) FILTER (WHERE wanted_at < now() - interval '1 day') AS older_than_day,
    min(wanted_at) AS oldest_at
FROM (
    SELECT
        visible,
        status,
        wanted_at,
        next_attempt_at > now() AND next_attempt_at <= now() + interval '25 hours' AS later,
        claim_token IS NOT NULL AND next_attempt_at > now() AND next_attempt_at <= now() + interval '25 hours' AS claimed
    FROM portal_sync_events
    WHERE status IN ('pending', 'blocked')
) AS events
GROUP BY visible
