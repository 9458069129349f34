-- What the statement before has locked. The contact is read now, in a newer snapshot, and asked for again: a corrected
-- one may be in flight for somebody else. Committed before any call is made; a crash leaves the lease to run out.
UPDATE portal_sync_events AS e
SET claim_token = %(token)s,
    claim_contact_id = m.dynamics_contact_id,
    attempts = e.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
FROM mentors AS m, organisations AS o
WHERE e.id = ANY (%(ids)s::bigint[])
    AND m.id = e.mentor_id
    AND o.id = m.organisation_id
    AND NOT EXISTS (
        SELECT
        FROM portal_sync_events AS flying
        WHERE flying.claim_contact_id = m.dynamics_contact_id
            AND flying.id <> e.id
            AND flying.claim_token IS NOT NULL
            AND flying.next_attempt_at > now()
            AND flying.next_attempt_at <= now() + interval '25 hours'
    )
    -- Two organisations may share a contact: one of them at a time, here too.
    AND NOT EXISTS (
        SELECT
        FROM portal_sync_events AS beside
        JOIN mentors AS other ON other.id = beside.mentor_id
        WHERE beside.id = ANY (%(ids)s::bigint[])
            AND beside.id < e.id
            AND other.dynamics_contact_id = m.dynamics_contact_id
    )
RETURNING e.id, e.mentor_id, m.member_no, e.visible, e.version, e.attempts, e.claim_token,
    m.dynamics_contact_id AS contact_id, o.portal IS NOT NULL AS has_portal
