-- While it is held nobody corrects the address. Never waits: no row = somebody does so just now.
SELECT id FROM coordinators WHERE id = %(id)s FOR NO KEY UPDATE SKIP LOCKED
