-- name: queue_portal_events
-- A new value replaces an open one: version + 1 tells a call in flight that its value is old. While a live lease is held
-- its token and time stay, so that no second call starts beside the first. The same value again keeps its time:
-- alerts show the oldest first. An open show that never arrived stays one when its day moves. In mentor order, as everybody
-- who locks several.
INSERT INTO portal_sync_events AS e (mentor_id, visible, moved_from, run_id)
SELECT n.mentor_id, n.visible, n.moved_from, %(run_id)s
FROM unnest(%(mentor_ids)b::uuid[], %(visible)b::boolean[], %(moved_from)b::date[]) AS n (mentor_id, visible, moved_from)
ORDER BY n.mentor_id
ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
SET visible = excluded.visible,
    moved_from = CASE WHEN excluded.moved_from IS NOT NULL THEN e.moved_from END,
    version = e.version + 1,
    status = 'pending',
    attempts = 0,
    wanted_at = CASE WHEN e.visible = excluded.visible THEN e.wanted_at ELSE now() END,
    last_error = NULL,
    failure_code = NULL,
    run_id = excluded.run_id,
    claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END,
    next_attempt_at = CASE
        WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.next_attempt_at ELSE now()
    END

-- name: reopen_portal_events
-- Everything that is open is due now, as a new value would be, blocked or not, whatever its retry time. version + 1 tells
-- a call in flight that it does not settle this. One statement, which waits for nobody: what another session has locked
-- (the app corrects a contact) is counted and reported.
WITH open AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE status IN ('pending', 'blocked')
    ORDER BY mentor_id
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE portal_sync_events AS e
SET version = e.version + 1,
    status = 'pending',
    attempts = 0,
    run_id = %(run_id)s,
    claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END,
    next_attempt_at = CASE
        WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.next_attempt_at ELSE now()
    END
FROM open
WHERE e.id = open.id

-- name: withdraw_portal_events
-- The organisation has no portal (any more): what is still open is withdrawn, and no call is made for it. In
-- mentor order, as everybody who locks several rows. A call in flight keeps its lease: should the mentor come back at
-- once, the next call waits for its end.
WITH open AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE mentor_id = ANY (%(mentor_ids)b::uuid[]) AND status IN ('pending', 'blocked')
    ORDER BY mentor_id
    FOR NO KEY UPDATE
)
UPDATE portal_sync_events AS e
SET status = 'withdrawn',
    version = e.version + 1,
    claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END
FROM open
WHERE e.id = open.id
RETURNING e.mentor_id
