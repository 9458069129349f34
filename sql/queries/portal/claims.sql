-- name: take_back_portal_claims
-- A process that died has left its claims behind, whose leases have run out. Nothing is known to be wrong with these
-- events: without their attempt they keep their place in the line. A process that only stood still settles nothing then.
WITH left_behind AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE claim_token IS NOT NULL AND status = 'pending' AND next_attempt_at <= now()
    ORDER BY mentor_id
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE portal_sync_events AS e
SET claim_token = NULL, attempts = greatest(e.attempts - 1, 0)
FROM left_behind
WHERE e.id = left_behind.id

-- name: lock_due_portal_events
-- Untried hides, untried shows, retried hides, retried shows: hides that never succeed do not delay the others. Last come
-- the pushes that only move the last visible day. A show of
-- a mentor who is due waits for the review, because it may not be true any more; without a day (null) all shows wait. Not
-- while a call for the contact is in flight: the contact may have been another mentor's when that call began. The review
-- withdraws an event of an organisation that has lost its portal.
SELECT e.id
FROM portal_sync_events AS e
-- OFFSET 0 and the count keep the planner from joining all mentors, or all calls in flight, with each event.
CROSS JOIN LATERAL (
    SELECT o.portal IS NOT NULL AS has_portal, m.review_on > %(today)s::date AS is_reviewed, (
            SELECT count(*)
            FROM portal_sync_events AS flying
            WHERE flying.claim_contact_id = m.dynamics_contact_id
                AND flying.claim_token IS NOT NULL
                AND flying.next_attempt_at > now()
        ) AS calls_in_flight
    FROM mentors AS m
    JOIN organisations AS o ON o.id = m.organisation_id
    WHERE m.id = e.mentor_id
    OFFSET 0
) AS m
WHERE e.status = 'pending'
    AND e.next_attempt_at <= now()
    AND m.has_portal
    AND (NOT e.visible OR m.is_reviewed)
    AND m.calls_in_flight = 0
ORDER BY e.moved_from IS NOT NULL, e.attempts > 0, e.visible, e.next_attempt_at
LIMIT %(limit)s
FOR NO KEY UPDATE OF e SKIP LOCKED

-- name: lock_portal_event
-- One mentor's open event for a resync, whatever its retry time, and also a blocked one; a show only as above. Not while
-- another run holds a live lease on it or calls for its contact.
SELECT e.id
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
WHERE e.mentor_id = %(mentor_id)s
    AND e.status IN ('pending', 'blocked')
    AND (NOT e.visible OR m.review_on > %(today)s::date)
    AND NOT (e.claim_token IS NOT NULL AND e.next_attempt_at > now())
    AND NOT EXISTS (
        SELECT
        FROM portal_sync_events AS flying
        WHERE flying.claim_contact_id = m.dynamics_contact_id
            AND flying.claim_token IS NOT NULL
            AND flying.next_attempt_at > now()
    )
FOR NO KEY UPDATE OF e SKIP LOCKED

-- name: claim_portal_events
-- The events that the statement before has locked, with the mentors of a newer snapshot; so it asks again whether a show
-- is true and a call for the contact in flight. Committed before any call is made: after a crash the lease runs out. The
-- contact of the last call stays when the mentor has none any more: it may still be visible.
UPDATE portal_sync_events AS e
SET claim_token = %(token)s,
    claim_contact_id = coalesce(m.dynamics_contact_id, e.claim_contact_id),
    attempts = e.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE e.id = ANY (%(ids)b::bigint[])
    AND m.id = e.mentor_id
    AND o.portal IS NOT NULL
    AND (NOT e.visible OR m.review_on > %(today)s::date)
    AND (
        SELECT count(*)
        FROM portal_sync_events AS flying
        WHERE flying.claim_contact_id = m.dynamics_contact_id
            AND flying.claim_token IS NOT NULL
            AND flying.next_attempt_at > now()
    ) = 0
-- The filter of the portal's view does not reach further than 2099-12-31.
RETURNING e.id, e.mentor_id, m.member_no, e.visible,
    CASE WHEN e.visible THEN least(m.certified_until, '2099-12-31') END AS visible_until,
    e.version, e.attempts, e.claim_token, m.dynamics_contact_id AS contact_id

-- name: settle_portal_events
-- The three answers: no row (token gone, nothing is written), unchanged, or raised (a newer value came during the call:
-- pending, due now, nothing resolved; what was withdrawn stays so).
UPDATE portal_sync_events AS e
SET status = CASE
        WHEN e.status = 'withdrawn' THEN e.status
        WHEN e.version = %(version)s THEN %(status)s
        ELSE 'pending'
    END,
    claim_token = NULL,
    attempts = CASE
        WHEN e.version = %(version)s AND NOT %(count_attempt)s THEN greatest(e.attempts - 1, 0)
        ELSE e.attempts
    END,
    next_attempt_at = CASE
        WHEN e.version = %(version)s THEN now() + make_interval(secs => %(delay_seconds)s)
        ELSE now()
    END,
    delivered_at = CASE
        WHEN e.version = %(version)s AND %(status)s = 'delivered' THEN now()
        ELSE e.delivered_at
    END,
    last_error = CASE
        WHEN e.version <> %(version)s THEN e.last_error
        WHEN %(status)s = 'delivered' THEN NULL
        ELSE coalesce(%(error)s, e.last_error)
    END,
    failure_code = CASE
        WHEN e.version <> %(version)s THEN e.failure_code
        WHEN %(status)s = 'delivered' THEN NULL
        WHEN %(error)s::text IS NULL THEN e.failure_code
        ELSE %(code)s
    END
WHERE e.id = %(id)s AND e.claim_token = %(token)s
RETURNING e.version = %(version)s AS unchanged
