-- The open pauses of some mentors, without a lock, for the plan.
SELECT mentor_id, id, reason
FROM mentor_pauses
WHERE mentor_id = ANY (%(ids)b::uuid[]) AND lifted_at IS NULL
