-- One mentor's open event for a resync, whatever its retry time, and also if another run was refused meanwhile; not
-- while another run holds a live lease on it or calls for its contact, nor while somebody holds the row: it asks again.
-- A lease beyond 25 hours is none, as in lock_due_portal_events.
WITH locked AS MATERIALIZED (
    SELECT e.id, m.dynamics_contact_id AS contact_id
    FROM portal_sync_events AS e
    JOIN mentors AS m ON m.id = e.mentor_id
    WHERE e.mentor_id = %(mentor_id)s
        AND e.status IN ('pending', 'blocked')
        AND NOT (
            e.claim_token IS NOT NULL
            AND e.next_attempt_at > now()
            AND e.next_attempt_at <= now() + interval '25 hours'
        )
        AND NOT EXISTS (
            SELECT
            FROM portal_sync_events AS flying
            WHERE flying.claim_contact_id = m.dynamics_contact_id
                AND flying.claim_token IS NOT NULL
                AND flying.next_attempt_at > now()
                AND flying.next_attempt_at <= now() + interval '25 hours'
        )
    FOR NO KEY UPDATE OF e SKIP LOCKED
)
-- As in lock_due_portal_events: no other session claims for this contact meanwhile.
SELECT l.id, l.contact_id
FROM locked AS l
WHERE l.contact_id IS NULL OR pg_try_advisory_xact_lock(hashtextextended(l.contact_id::text, 7))
