-- A new wish replaces an open one: version + 1 tells a call in flight that its value is old. While a live lease is held
-- its token and time stay, so that no second call starts beside the first. The same value again is as old a wish as it
-- was: alerts show the oldest first. In mentor order, as everybody who locks several.
INSERT INTO portal_sync_events AS e (mentor_id, visible, run_id)
SELECT n.mentor_id, n.visible, %(run_id)s
FROM unnest(%(mentor_ids)b::uuid[], %(visible)b::boolean[]) AS n (mentor_id, visible)
ORDER BY n.mentor_id
ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
SET visible = excluded.visible,
    version = e.version + 1,
    status = 'pending',
    attempts = 0,
    wanted_at = CASE WHEN e.visible = excluded.visible THEN e.wanted_at ELSE now() END,
    last_error = NULL,
    run_id = excluded.run_id,
    claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END,
    next_attempt_at = CASE
        WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.next_attempt_at ELSE now()
    END
RETURNING e.id, e.mentor_id, e.version
