-- Events that are done, one page by key. Never an open one, nor one whose call may still be in flight, nor one that an
-- unresolved failure is about. Of each mentor the last confirmation of either value stays: it is what the portal is known to
-- show, and `deliver --all` shows only whom it has shown before.
WITH page AS MATERIALIZED (
    SELECT id FROM portal_sync_events WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM portal_sync_events AS e
    USING page
    WHERE e.id = page.id
        AND e.status IN ('delivered', 'withdrawn')
        AND greatest(e.wanted_at, e.next_attempt_at, e.delivered_at) < %(before)s
        AND NOT EXISTS (
            SELECT FROM dynamics_sync_failures AS f WHERE f.event_id = e.id AND f.resolved_at IS NULL
        )
        AND NOT (
            e.delivered_at IS NOT NULL
            AND NOT EXISTS (
                SELECT
                FROM portal_sync_events AS newer
                WHERE newer.mentor_id = e.mentor_id
                    AND newer.visible = e.visible
                    AND newer.status = 'delivered'
                    AND (newer.delivered_at, newer.id) > (e.delivered_at, e.id)
            )
        )
    RETURNING e.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted
