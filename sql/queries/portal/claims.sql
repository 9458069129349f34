-- name: take_back_portal_claims
-- Clear the expired claims of processes that died. The attempt is subtracted, because the events themselves did not
-- fail; they keep their place in the queue. If the process was only suspended, its settle finds no token and changes
-- no row.
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
-- Order: untried urgent ones, untried shows, retried urgent ones, retried shows, later last days. Hides that keep failing
-- do not delay other events. A show of a due mentor waits for the review, because the facts have changed; without a day
-- (null) all shows wait. An event waits while a call for its contact is in flight, because the contact may have
-- been another mentor's when that call started. If an organisation has lost its portal, the review withdraws its
-- events.
SELECT e.id
FROM portal_sync_events AS e
-- OFFSET 0 and the count prevent a join of all mentors, or of all calls in flight, with each event.
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
ORDER BY e.sure_until > '0001-01-01' AND NOT e.is_urgent, e.attempts > 0, NOT e.is_urgent, e.next_attempt_at
LIMIT %(limit)s
FOR NO KEY UPDATE OF e SKIP LOCKED

-- name: lock_portal_event
-- The open event of one mentor, for a resync. Retry times are ignored, and blocked events are included. The
-- conditions for shows and for calls in flight are those of lock_due_portal_events. The resync asks again while
-- another run has the event.
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
-- Claim the events that the previous statement locked. This statement reads the mentors in a newer snapshot, so it
-- checks the shows and the calls in flight again. The claim is committed before any call; after a crash, its lease
-- expires. If the mentor has no contact, the contact of the last call is kept, because it may still be visible. The range
-- of days that the portal may have now includes the new one. The filter of the portal's view ends at 2099-12-31.
UPDATE portal_sync_events AS e
SET claim_token = %(token)s,
    claim_contact_id = coalesce(m.dynamics_contact_id, e.claim_contact_id),
    attempts = e.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s),
    wanted_until = CASE WHEN e.visible THEN least(m.certified_until, '2099-12-31') END,
    sure_until = CASE
        WHEN NOT e.visible THEN '0001-01-01'
        WHEN e.shown_until = 'infinity' THEN e.sure_until
        ELSE least(e.sure_until, m.certified_until)
    END,
    shown_until = CASE
        WHEN e.visible THEN greatest(e.shown_until, least(m.certified_until, '2099-12-31')) ELSE e.shown_until
    END
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
RETURNING e.id, e.mentor_id, m.member_no, e.visible, e.wanted_until AS visible_until, e.version, e.attempts, e.claim_token, m.dynamics_contact_id AS contact_id

-- name: settle_portal_events
-- Return no row if the token does not match; the event is then left as it is. Otherwise `unchanged` is true if the
-- outcome was stored, and false if a newer value was queued during the call. The event is then pending and due now,
-- or withdrawn.
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
    sure_until = CASE
        WHEN e.version = %(version)s AND %(status)s = 'delivered' THEN coalesce(%(confirmed_until)s::date, 'infinity')
        ELSE e.sure_until
    END,
    shown_until = CASE
        WHEN e.version = %(version)s AND %(status)s = 'delivered' THEN coalesce(%(confirmed_until)s::date, 'infinity')
        ELSE e.shown_until
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
