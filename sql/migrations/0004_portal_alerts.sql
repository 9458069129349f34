-- What a coordinator must know about the portal: one view, read by `certjob alerts` and by the app's dashboard.

CREATE VIEW portal_alerts WITH (security_invoker = true) AS
SELECT
    e.id AS event_id,
    e.mentor_id,
    m.organisation_id,
    m.member_no,
    coalesce(m.full_name, m.member_no) AS full_name,
    e.visible,
    CASE WHEN e.visible
        THEN 'Dynamics sync pending — mentor may still be hidden on portal'
        ELSE 'Dynamics sync pending — mentor may still be visible on portal'
    END AS sentence,
    coalesce(f.error, e.last_error) AS error,
    coalesce(f.attempts, 0) AS attempts,
    e.wanted_at,
    f.last_failed_at
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
LEFT JOIN dynamics_sync_failures AS f ON f.mentor_id = e.mentor_id AND f.resolved_at IS NULL
WHERE e.status IN ('pending', 'blocked')
    AND (f.id IS NOT NULL OR e.wanted_at < now() - interval '1 hour')
ORDER BY e.visible, e.wanted_at, e.id;

-- Supabase's dashboard subscribes to this publication and hears of a new failure without polling.
-- One that is FOR ALL TABLES has the table already, and refuses to be told so.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_publication WHERE pubname = 'supabase_realtime' AND NOT puballtables) THEN
        ALTER PUBLICATION supabase_realtime ADD TABLE dynamics_sync_failures;
    END IF;
END
$$;
