-- name: record_sync_failure
-- One unresolved row per mentor, whose attempts (calls made) and time move with every failed round. A row needs a lock on
-- its mentor: while somebody holds that, none is written, rather than that one open transaction holds up all settling.
-- Returns whether it is news: RETURNING still sees the row as it was. Who waited because the stage ended early, and now
-- fails in the same outage, is none.
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
) AS is_news

-- name: record_stage_failures
-- The stage ended early: no open hide waits unseen. This reason replaces that of an older end: nobody is to read of a key
-- that was fixed. The same reason again leaves the row as it is, with its correlation id: nothing is written again and
-- again for thousands of mentors. An event that another session has locked is in work right now and gets its own outcome;
-- without the lock a row made here could outlive the delivery that should have resolved it.
INSERT INTO dynamics_sync_failures AS f (mentor_id, event_id, visible, kind, attempts, error, failure_code,
    correlation_id)
SELECT e.mentor_id, e.id, e.visible, 'stage', 0, %(error)s, %(code)s, %(correlation_id)s
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
WHERE e.status IN ('pending', 'blocked')
    AND NOT e.visible
    AND (%(mentor_id)s::uuid IS NULL OR e.mentor_id = %(mentor_id)s)
    AND NOT EXISTS (
        SELECT
        FROM dynamics_sync_failures AS known
        WHERE known.mentor_id = e.mentor_id
            AND known.resolved_at IS NULL
            AND (known.kind <> 'stage' OR known.error = %(error)s)
    )
ORDER BY e.mentor_id
FOR NO KEY UPDATE OF e SKIP LOCKED
FOR KEY SHARE OF m SKIP LOCKED
ON CONFLICT (mentor_id) WHERE resolved_at IS NULL DO UPDATE
SET error = excluded.error, failure_code = excluded.failure_code, correlation_id = excluded.correlation_id, last_failed_at = now()
WHERE f.kind = 'stage'

-- name: resolve_sync_failures
-- Resolved by UPDATE, never deleted: Realtime does not filter DELETE by row-level security.
UPDATE dynamics_sync_failures
SET resolved_at = now()
WHERE mentor_id = ANY (%(mentor_ids)b::uuid[]) AND resolved_at IS NULL
