-- What delete_old_portal_events would delete.
SELECT count(*)
FROM portal_sync_events AS e
WHERE e.status IN ('delivered', 'withdrawn')
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
