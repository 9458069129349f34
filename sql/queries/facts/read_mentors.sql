-- The mentors' own facts; after the lock, in a newer snapshot.
SELECT id, member_no, organisation_id, left_at IS NOT NULL AS "left", portal_visible
FROM mentors
WHERE id = ANY (%(ids)b::uuid[])
