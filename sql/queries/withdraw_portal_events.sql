-- The organisation has no portal (any more): what is still open is withdrawn, and no call is made for it.
UPDATE portal_sync_events
SET status = 'withdrawn', version = version + 1, claim_token = NULL
WHERE mentor_id = ANY (%(mentor_ids)s::uuid[]) AND status IN ('pending', 'blocked')
RETURNING mentor_id
