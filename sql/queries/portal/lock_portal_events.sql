-- Settling locks several rows: in mentor order, like everybody else. It waits for none, and returns those that somebody
-- else holds: the app, of the mentors whose contact it is correcting, in its own order and for as long as it likes.
WITH locked AS MATERIALIZED (
    SELECT id FROM portal_sync_events WHERE id = ANY (%(ids)s) ORDER BY mentor_id FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id FROM portal_sync_events WHERE id = ANY (%(ids)s) AND id NOT IN (SELECT id FROM locked)
