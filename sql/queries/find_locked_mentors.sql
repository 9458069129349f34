-- Due mentors whose row another session holds right now: those that a SKIP LOCKED read does not return.
WITH free AS MATERIALIZED (
    SELECT id
    FROM mentors
    WHERE review_on <= %(today)s
        AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
        AND organisation_id <> ALL (%(held)s::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id
FROM mentors
WHERE review_on <= %(today)s
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    AND organisation_id <> ALL (%(held)s::uuid[])
    AND id NOT IN (SELECT id FROM free)
ORDER BY id
LIMIT 10000
