-- While it is held nobody reviews the mentor or changes their facts. Never waits: no row = somebody does so just now.
SELECT id FROM mentors WHERE id = %(id)s FOR NO KEY UPDATE SKIP LOCKED
