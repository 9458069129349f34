-- Only locks; what is wanted of them is read by a later statement, in a newer snapshot. In one order, and never waiting.
SELECT id FROM mentors WHERE id = ANY (%(ids)s::uuid[]) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
