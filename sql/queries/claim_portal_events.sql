-- Hides before shows, untried before retried. Committed before any call is made; a crash leaves the lease to run out.
WITH due AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE status = 'pending' AND next_attempt_at <= now()
    ORDER BY visible, attempts, next_attempt_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE portal_sync_events AS e
SET claim_token = %(token)s, attempts = e.attempts + 1, next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
FROM due, mentors AS m, organisations AS o
WHERE e.id = due.id AND m.id = e.mentor_id AND o.id = m.organisation_id
RETURNING e.id, e.mentor_id, m.member_no, e.visible, e.version, e.attempts, e.claim_token,
    m.dynamics_contact_id AS contact_id, o.portal IS NOT NULL AS has_portal
