-- What is open at the end of a run, and what of it coordinators must know.
SELECT
    count(*) FILTER (WHERE status = 'pending') AS pending,
    count(*) FILTER (WHERE status = 'blocked') AS blocked,
    (SELECT count(*) FROM portal_alerts) AS alerts
FROM portal_sync_events
WHERE status IN ('pending', 'blocked')
