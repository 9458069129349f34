-- Of the events that the statement before has locked, those whose contact no other session is claiming for at this moment;
-- the claim after it, in a newer snapshot, then sees whatever that one has committed. Without it two sessions that each
-- hold another event of the same contact would not see each other's claim. It never waits, and ends with the transaction.
WITH locked AS MATERIALIZED (
    SELECT e.id, m.dynamics_contact_id AS contact_id
    FROM unnest(%(ids)b::bigint[]) AS given (id)
    CROSS JOIN LATERAL (SELECT id, mentor_id FROM portal_sync_events WHERE id = given.id OFFSET 0) AS e
    CROSS JOIN LATERAL (SELECT dynamics_contact_id FROM mentors WHERE id = e.mentor_id OFFSET 0) AS m
)
SELECT l.id
FROM locked AS l
WHERE l.contact_id IS NULL OR pg_try_advisory_xact_lock(hashtextextended(l.contact_id::text, 7))
