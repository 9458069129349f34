-- The organisation has no portal (any more): what is still open is withdrawn, and no call is made for it. In
-- mentor order, as everybody who locks several rows.
WITH open AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE mentor_id = ANY (%(mentor_ids)s::uuid[]) AND status IN ('pending', 'blocked')
    ORDER BY mentor_id
    FOR NO KEY UPDATE
)
UPDATE portal_sync_events AS e
SET status = 'withdrawn', version = e.version + 1, claim_token = NULL
FROM open
WHERE e.id = open.id
RETURNING e.mentor_id
