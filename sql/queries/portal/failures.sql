-- name: record_sync_failure
-- Each mentor has at most one unresolved row. Every failed round updates it and adds its calls to `attempts`. The
-- foreign key needs a lock on the mentor. While another session has that lock, no row is written, because the settle
-- must not wait. `is_news` is false if the same cause was known since the value was requested; the subquery still sees the
-- old row. The cause is also known if an early end of the stage has recorded it.
INSERT INTO dynamics_sync_failures AS f (mentor_id, event_id, visible, kind, attempts, error, failure_code, correlation_id)
SELECT e.mentor_id, e.id, %(visible)s, %(kind)s, %(attempts)s, %(error)s, %(code)s, %(correlation_id)s
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
WHERE e.id = %(event_id)s AND e.status IN ('pending', 'blocked')
FOR KEY SHARE OF m SKIP LOCKED
ON CONFLICT (mentor_id) WHERE resolved_at IS NULL DO UPDATE
SET event_id = excluded.event_id,
    visible = excluded.visible,
    kind = excluded.kind,
    attempts = f.attempts + excluded.attempts,
    error = excluded.error,
    failure_code = excluded.failure_code,
    correlation_id = excluded.correlation_id,
    last_failed_at = now()
RETURNING NOT EXISTS (
    SELECT
    FROM dynamics_sync_failures AS known
    WHERE known.mentor_id = f.mentor_id
        AND known.resolved_at IS NULL
        AND known.failure_code = %(code)s
        AND known.last_failed_at >= (SELECT e.wanted_at FROM portal_sync_events AS e WHERE e.id = %(event_id)s)
) AS is_news

-- name: record_stage_failures
-- Record the reason of an early end for every urgent push. It replaces the reason of an older end. It also replaces the
-- mentor's own failure if the push was reopened since, or if no push can succeed, because someone must act on that first.
-- Rows with the same reason are left as they are, because there may be thousands. Locked events are skipped, because a row
-- could otherwise outlive the delivery that should resolve it. last_failed_at keeps the value that was read: a failure that
-- was stored in the meantime is not replaced. OFFSET 0, because a join would read the new rows for each push.
INSERT INTO dynamics_sync_failures AS f (mentor_id, event_id, visible, kind, attempts, error, failure_code,
    correlation_id, last_failed_at)
SELECT e.mentor_id, e.id, e.visible, 'stage', 0, %(error)s, %(code)s, %(correlation_id)s,
    coalesce(known.last_failed_at, now())
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
LEFT JOIN LATERAL (
    SELECT k.id, k.kind, k.error, k.last_failed_at
    FROM dynamics_sync_failures AS k
    WHERE k.mentor_id = e.mentor_id AND k.resolved_at IS NULL
    OFFSET 0
) AS known ON true
WHERE e.status IN ('pending', 'blocked')
    AND e.is_urgent
    AND (%(mentor_id)s::uuid IS NULL OR e.mentor_id = %(mentor_id)s)
    AND known.error IS DISTINCT FROM %(error)s
    AND (
        known.id IS NULL
        OR known.kind = 'stage'
        OR (e.status = 'pending' AND (e.attempts = 0 OR %(code)s = 'portal_stopped'))
    )
ORDER BY e.mentor_id
FOR NO KEY UPDATE OF e SKIP LOCKED
FOR KEY SHARE OF m SKIP LOCKED
ON CONFLICT (mentor_id) WHERE resolved_at IS NULL DO UPDATE
SET event_id = excluded.event_id,
    visible = excluded.visible,
    kind = excluded.kind,
    error = excluded.error,
    failure_code = excluded.failure_code,
    correlation_id = excluded.correlation_id,
    last_failed_at = now()
WHERE f.kind = 'stage' OR f.last_failed_at = excluded.last_failed_at

-- name: resolve_sync_failures
-- An UPDATE, because Realtime does not filter a DELETE by row-level security.
UPDATE dynamics_sync_failures
SET resolved_at = now()
WHERE mentor_id = ANY (%(mentor_ids)b::uuid[]) AND resolved_at IS NULL
