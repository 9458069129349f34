-- Settling locks several rows: in mentor order, like everybody else, so that nobody deadlocks.
SELECT id FROM portal_sync_events WHERE id = ANY (%(ids)s) ORDER BY mentor_id FOR NO KEY UPDATE
