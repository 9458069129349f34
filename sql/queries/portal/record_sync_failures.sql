-- One unresolved row per mentor, whose attempts (calls made) and time move with every failed round. A row needs a lock on
-- its mentor: an event whose mentor somebody holds is left out and returned, rather than that one open transaction holds
-- up all settling. When it is tried again the event may be done: then there is nothing to say any more.
WITH open AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE id = ANY (%(event_ids)s::bigint[]) AND status IN ('pending', 'blocked')
), written AS (
    INSERT INTO dynamics_sync_failures AS f (mentor_id, event_id, visible, kind, attempts, error, correlation_id)
    SELECT e.mentor_id, e.id, n.visible, n.kind, n.attempts, n.error, n.correlation_id
    FROM unnest(
        %(event_ids)s::bigint[], %(visible)s::boolean[], %(kinds)s::text[], %(attempts)s::int[], %(errors)s::text[],
        %(correlation_ids)s::text[]
    ) AS n (event_id, visible, kind, attempts, error, correlation_id)
    JOIN portal_sync_events AS e ON e.id = n.event_id AND e.status IN ('pending', 'blocked')
    JOIN mentors AS m ON m.id = e.mentor_id
    ORDER BY e.mentor_id
    FOR NO KEY UPDATE OF e SKIP LOCKED
    FOR KEY SHARE OF m SKIP LOCKED
    ON CONFLICT (mentor_id) WHERE resolved_at IS NULL DO UPDATE
    SET event_id = excluded.event_id,
        visible = excluded.visible,
        kind = excluded.kind,
        attempts = f.attempts + excluded.attempts,
        error = excluded.error,
        correlation_id = excluded.correlation_id,
        last_failed_at = now()
    RETURNING f.event_id
)
SELECT id FROM open WHERE id NOT IN (SELECT event_id FROM written)
