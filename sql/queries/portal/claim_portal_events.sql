-- What the statement before has locked, and the contact it has kept for each. Whether that is in flight is asked again, in
-- a newer snapshot; an event whose contact was corrected meanwhile is left for the next claim. Committed before any call
-- is made; a crash leaves the lease to run out.
WITH locked AS MATERIALIZED (
    SELECT kept.id, m.member_no, m.contact_id, m.has_portal,
        row_number() OVER (PARTITION BY m.contact_id ORDER BY kept.place) AS turn
    FROM unnest(%(ids)b::bigint[], %(contacts)b::uuid[]) WITH ORDINALITY AS kept (id, contact_id, place)
    -- One event after the other by its key (OFFSET 0), and the calls counted: joins would read all events of a young
    -- backlog, or all mentors of a table of up to some 30,000, and EXISTS all that is in flight once for each event.
    CROSS JOIN LATERAL (
        SELECT m.member_no, m.dynamics_contact_id AS contact_id, o.portal IS NOT NULL AS has_portal,
            (
                SELECT count(*)
                FROM portal_sync_events AS flying
                WHERE flying.claim_contact_id = m.dynamics_contact_id
                    AND flying.claim_token IS NOT NULL
                    AND flying.next_attempt_at > now()
                    AND flying.next_attempt_at <= now() + interval '25 hours'
            ) AS calls_in_flight
        FROM portal_sync_events AS e
        JOIN mentors AS m ON m.id = e.mentor_id
        JOIN organisations AS o ON o.id = m.organisation_id
        WHERE e.id = kept.id
        OFFSET 0
    ) AS m
    WHERE m.contact_id IS NOT DISTINCT FROM kept.contact_id
        AND m.calls_in_flight = 0
)
UPDATE portal_sync_events AS e
SET claim_token = %(token)s,
    claim_contact_id = l.contact_id,
    attempts = e.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s)
FROM locked AS l
WHERE e.id = l.id
    -- Two organisations may share a contact: one of them at a time, here too, and the first in line.
    AND (l.turn = 1 OR l.contact_id IS NULL)
RETURNING e.id, e.mentor_id, l.member_no, e.visible, e.version, e.attempts, e.claim_token, l.contact_id, l.has_portal
