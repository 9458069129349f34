-- The open pauses of locked mentors; as lock_certificates, a row that somebody holds comes back without an id.
WITH locked AS MATERIALIZED (
    SELECT id, reason
    FROM mentor_pauses
    WHERE mentor_id = ANY (%(ids)b::uuid[]) AND lifted_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT seen.mentor_id, locked.id, locked.reason
FROM mentor_pauses AS seen
LEFT JOIN locked ON locked.id = seen.id
WHERE seen.mentor_id = ANY (%(ids)b::uuid[]) AND seen.lifted_at IS NULL
