-- Everything that is open is due now, as a new wish would be: what was blocked, too, whatever its retry time. version + 1
-- tells a call in flight that it does not settle this. In one statement, which waits for nobody: what another session
-- holds just now (the app corrects a contact) is counted and said.
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
