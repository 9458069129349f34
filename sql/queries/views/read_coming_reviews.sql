-- One chunk of the mentors who will be reviewed up to a day (all for null), each with the first day of it: nights before
-- that do not look at them. As read_due_mentors, which has no use for the day.
SELECT id, review_on::text AS review_key,
    CASE WHEN %(everybody)s THEN %(today)s::date ELSE greatest(review_on, %(today)s) END AS reviewed_on
FROM mentors
WHERE (%(everybody)s OR review_on <= %(until)s)
    AND (review_on, id) > (%(after_review)s::date, %(after_id)s::uuid)
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
ORDER BY review_on, id
LIMIT %(limit)s
