-- The rows that may be this person: by the app's user id in any organisation, by e-mail in this one, whatever its case.
SELECT id, organisation_id
FROM coordinators
WHERE id = %(id)s::uuid OR (organisation_id = %(organisation_id)s AND lower(email) = lower(%(email)s))
ORDER BY email <> %(email)s, id
FOR UPDATE
