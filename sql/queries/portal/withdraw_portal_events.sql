-- The organisation has no portal (any more): what is still open is withdrawn, and no call is made for it. In
-- mentor order, as everybody who locks several rows. A call in flight keeps its lease: should the mentor come back at
-- once, the next call waits for its end. A mentor who has moved here while a hide was open may stay visible where they
-- were (when an organisation loses its portal, portal_visible is null).
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
FROM open, mentors AS m
WHERE e.id = open.id AND m.id = e.mentor_id
RETURNING e.mentor_id, NOT e.visible AND m.portal_visible IS FALSE AS may_stay_visible
