-- Settling locks several rows: in one order, so that nobody deadlocks.
SELECT id FROM coordinator_digests WHERE id = ANY (%(ids)s) ORDER BY id FOR NO KEY UPDATE
