-- One mentor's open event for a resync, whatever its retry time, and also if another run was refused meanwhile; not
-- while another run holds a live lease on it.
UPDATE portal_sync_events AS e
SET claim_token = %(token)s, attempts = e.attempts + 1, next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
FROM mentors AS m, organisations AS o
WHERE e.mentor_id = %(mentor_id)s
    AND e.status IN ('pending', 'blocked')
    AND NOT (e.claim_token IS NOT NULL AND e.next_attempt_at > now())
    AND m.id = e.mentor_id
    AND o.id = m.organisation_id
RETURNING e.id, e.mentor_id, m.member_no, e.visible, e.version, e.attempts, e.claim_token,
    m.dynamics_contact_id AS contact_id, o.portal IS NOT NULL AS has_portal
