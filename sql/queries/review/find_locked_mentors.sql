-- Where due mentors stay due on purpose (their reminders are held), a mentor that somebody else holds is told by its
-- lock: it is one that a SKIP LOCKED read does not return.
WITH free AS MATERIALIZED (
    SELECT id
    FROM mentors
    WHERE review_on <= %(today)s AND organisation_id = ANY (%(organisations)s::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id
FROM mentors
WHERE review_on <= %(today)s
    AND organisation_id = ANY (%(organisations)s::uuid[])
    AND id NOT IN (SELECT id FROM free)
ORDER BY id
LIMIT 10000
