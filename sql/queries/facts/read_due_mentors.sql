-- One chunk of due mentors for the plan: as lock_due_mentors, but it takes no lock and runs on a read-only connection.
SELECT id, review_on::text AS review_key
FROM mentors
WHERE review_on <= coalesce(%(due_by)s::date, 'infinity')
    AND (review_on, id) > (%(after_review)s::date, %(after_id)s::uuid)
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
ORDER BY review_on, id
LIMIT %(limit)s
