-- While it is held nobody corrects the address. Never waits: no row = somebody does so just now.
SELECT c.id
FROM coordinators AS c
WHERE c.id = (SELECT d.coordinator_id FROM coordinator_digests AS d WHERE d.id = %(digest_id)s)
FOR NO KEY UPDATE OF c SKIP LOCKED
