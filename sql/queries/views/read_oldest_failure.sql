-- The push that has failed for longest, and how many there are that nobody has resolved.
SELECT f.mentor_id, m.member_no, o.slug AS organisation, f.visible, f.kind, f.attempts, f.error, f.created_at,
    f.last_failed_at, f.unresolved
FROM (
    SELECT mentor_id, visible, kind, attempts, error, created_at, last_failed_at, count(*) OVER () AS unresolved
    FROM dynamics_sync_failures
    WHERE resolved_at IS NULL
    ORDER BY created_at, id
    LIMIT 1
) AS f
JOIN mentors AS m ON m.id = f.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
