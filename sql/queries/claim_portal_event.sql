-- One mentor's open event for a resync, whatever its retry time, and also if another run was refused meanwhile; not
-- while another run holds a live lease on it, nor while somebody holds the row: the resync asks again.
WITH open AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE mentor_id = %(mentor_id)s
        AND status IN ('pending', 'blocked')
        AND NOT (claim_token IS NOT NULL AND next_attempt_at > now())
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE portal_sync_events AS e
SET claim_token = %(token)s, attempts = e.attempts + 1, next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
FROM open, mentors AS m, organisations AS o
WHERE e.id = open.id AND m.id = e.mentor_id AND o.id = m.organisation_id
RETURNING e.id, e.mentor_id, m.member_no, e.visible, e.version, e.attempts, e.claim_token,
    m.dynamics_contact_id AS contact_id, o.portal IS NOT NULL AS has_portal
