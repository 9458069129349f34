-- One mentor for a resync, due or not; waits for whoever holds the row (lock_timeout bounds it).
SELECT id FROM mentors WHERE id = %(id)s FOR NO KEY UPDATE
