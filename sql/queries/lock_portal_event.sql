-- One mentor's open event for a resync, whatever its retry time, and also if another run was refused meanwhile; not
-- while another run holds a live lease on it or calls for its contact, nor while somebody holds the row: it asks again.
SELECT e.id
FROM portal_sync_events AS e
WHERE e.mentor_id = %(mentor_id)s
    AND e.status IN ('pending', 'blocked')
    AND NOT (e.claim_token IS NOT NULL AND e.next_attempt_at > now())
    AND NOT EXISTS (
        SELECT
        FROM mentors AS m
        JOIN portal_sync_events AS flying ON flying.claim_contact_id = m.dynamics_contact_id
        WHERE m.id = e.mentor_id
            AND flying.id <> e.id
            AND flying.claim_token IS NOT NULL
            AND flying.next_attempt_at > now()
            AND flying.next_attempt_at <= now() + interval '25 hours'
    )
FOR NO KEY UPDATE OF e SKIP LOCKED
