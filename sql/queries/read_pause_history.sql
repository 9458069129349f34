-- The open pauses and the latest of those that were lifted.
SELECT p.reason, p.actor, p.paused_at, p.lifted_at, p.lifted_by
FROM mentor_pauses AS p
WHERE p.mentor_id = %(mentor_id)s
ORDER BY p.lifted_at DESC NULLS FIRST, p.paused_at DESC
LIMIT 20
