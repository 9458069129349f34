-- The certificates of some mentors, without a lock, for the plan.
SELECT mentor_id, id, kind, issued_on, expires_on, revoked_at IS NOT NULL AS revoked, status
FROM certificates
WHERE mentor_id = ANY (%(ids)b::uuid[])
