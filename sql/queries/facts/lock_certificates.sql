-- The certificates of locked mentors. The app locks certificate, then mentor; waiting here would deadlock with it, so a
-- row that somebody holds comes back without an id and its mentor is left for the next pass.
WITH locked AS MATERIALIZED (
    SELECT id, kind, issued_on, expires_on, revoked_at IS NOT NULL AS revoked, status
    FROM certificates
    WHERE mentor_id = ANY (%(ids)b::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT seen.mentor_id, locked.id, locked.kind, locked.issued_on, locked.expires_on, locked.revoked, locked.status
FROM certificates AS seen
LEFT JOIN locked ON locked.id = seen.id
WHERE seen.mentor_id = ANY (%(ids)b::uuid[])
