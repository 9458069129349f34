-- One unresolved row per mentor, whose attempts (calls made) and time move with every failed round.
INSERT INTO dynamics_sync_failures AS f (mentor_id, event_id, visible, kind, attempts, error, correlation_id)
SELECT n.mentor_id, n.event_id, n.visible, n.kind, n.attempts, n.error, n.correlation_id
FROM unnest(
    %(mentor_ids)s::uuid[], %(event_ids)s::bigint[], %(visible)s::boolean[], %(kinds)s::text[], %(attempts)s::int[],
    %(errors)s::text[], %(correlation_ids)s::text[]
) AS n (mentor_id, event_id, visible, kind, attempts, error, correlation_id)
ORDER BY n.mentor_id
ON CONFLICT (mentor_id) WHERE resolved_at IS NULL DO UPDATE
SET event_id = excluded.event_id,
    visible = excluded.visible,
    kind = excluded.kind,
    attempts = f.attempts + excluded.attempts,
    error = excluded.error,
    correlation_id = excluded.correlation_id,
    last_failed_at = now()
