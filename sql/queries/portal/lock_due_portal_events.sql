-- Hides before shows, untried before retried. Not while a call for the same contact is in flight, whoever it is for: the
-- ids of two mentors may have been swapped, or the mentor has been away and back. No delay is longer than a day, so what
-- is due beyond that was written by a server whose clock was wrong. What belongs to an organisation that has lost its portal
-- is left to the review, which withdraws it: claimed and given back it would be due again at once, for hours.
WITH locked AS MATERIALIZED (
    SELECT e.id, m.contact_id
    FROM portal_sync_events AS e
    -- Asked of one event at a time (OFFSET 0), and counted: EXISTS the planner turns into joins, over all mentors, or over
    -- all that is in flight for each event, since it takes that for nothing. Four processes were slower than one.
    CROSS JOIN LATERAL (
        SELECT m.dynamics_contact_id AS contact_id, o.portal IS NOT NULL AS has_portal,
            (
                SELECT count(*)
                FROM portal_sync_events AS flying
                WHERE flying.claim_contact_id = m.dynamics_contact_id
                    AND flying.claim_token IS NOT NULL
                    AND flying.next_attempt_at > now()
                    AND flying.next_attempt_at <= now() + interval '25 hours'
            ) AS calls_in_flight
        FROM mentors AS m
        JOIN organisations AS o ON o.id = m.organisation_id
        WHERE m.id = e.mentor_id
        OFFSET 0
    ) AS m
    WHERE e.status = 'pending'
        AND e.attempts < %(attempts_below)s  -- what the stage leaves out, since it failed again and again
        AND (e.next_attempt_at <= now() OR e.next_attempt_at > now() + interval '25 hours')
        AND m.has_portal
        AND m.calls_in_flight = 0
    ORDER BY e.visible, e.attempts, e.next_attempt_at
    LIMIT %(limit)s
    FOR NO KEY UPDATE OF e SKIP LOCKED
)
-- Each contact is kept from other sessions until this transaction ends. Two that each hold another event of the same one
-- would not see each other's claim; so the second passes it by, or claims in a newer snapshot than the first's commit.
SELECT l.id, l.contact_id
FROM locked AS l
WHERE l.contact_id IS NULL OR pg_try_advisory_xact_lock(hashtextextended(l.contact_id::text, 7))
