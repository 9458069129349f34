-- Who is still due when the passes are over: somebody held them, or changed them just now. Not the organisations that
-- are held, nor those whose reminders are held, whose mentors stay due on purpose.
SELECT id
FROM mentors
WHERE review_on <= %(today)s
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
    AND organisation_id <> ALL (%(held)s::uuid[])
    AND id <> ALL (%(broken)s::uuid[])
ORDER BY review_on, id
LIMIT 10000
