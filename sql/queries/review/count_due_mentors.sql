-- Organisations with enough due mentors to exceed a guard's limit; a normal night finds none.
SELECT organisation_id, count(*) AS due
FROM mentors
WHERE review_on <= coalesce(%(due_by)s::date, 'infinity') AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
GROUP BY organisation_id
HAVING count(*) > %(minimum)s
