-- The open pauses and the latest of those that were lifted. Times that only PostgreSQL knows: see read_mentor_story.sql.
SELECT p.reason, p.actor, p.lifted_by,
    CASE WHEN p.paused_at IS NOT NULL THEN greatest('0002-01-01', least(p.paused_at, '9998-12-31')) END AS paused_at,
    CASE WHEN p.lifted_at IS NOT NULL THEN greatest('0002-01-01', least(p.lifted_at, '9998-12-31')) END AS lifted_at
FROM mentor_pauses AS p
WHERE p.mentor_id = %(mentor_id)s
ORDER BY p.lifted_at DESC NULLS FIRST, p.paused_at DESC
LIMIT 20
