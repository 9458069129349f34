-- Hides before shows, untried before retried. Not while a call for the same contact is in flight, whoever it is for: the
-- ids of two mentors may have been swapped, or the mentor has been away and back. No delay is longer than a day, so what
-- is due beyond that was written by a server whose clock was wrong. What belongs to an organisation that has lost its portal
-- is left to the review, which withdraws it: claimed and given back it would be due again at once, for hours.
SELECT e.id
FROM portal_sync_events AS e
WHERE e.status = 'pending'
    AND (e.next_attempt_at <= now() OR e.next_attempt_at > now() + interval '25 hours')
    -- Asked of one event at a time, and counted: EXISTS the planner turns into joins, over all mentors, or over all that is
    -- in flight for each event, since it takes that for nothing. Four processes were slower than one.
    AND (
        SELECT o.portal IS NOT NULL AND (
            SELECT count(*)
            FROM portal_sync_events AS flying
            WHERE flying.claim_contact_id = m.dynamics_contact_id
                AND flying.id <> e.id
                AND flying.claim_token IS NOT NULL
                AND flying.next_attempt_at > now()
                AND flying.next_attempt_at <= now() + interval '25 hours'
        ) = 0
        FROM mentors AS m
        JOIN organisations AS o ON o.id = m.organisation_id
        WHERE m.id = e.mentor_id
    )
ORDER BY e.visible, e.attempts, e.next_attempt_at
LIMIT %(limit)s
FOR NO KEY UPDATE OF e SKIP LOCKED
