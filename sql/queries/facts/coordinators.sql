-- name: lock_coordinators
-- Rows that may be this person: by the app's user id in any organisation, or by e-mail in this organisation.
SELECT id, organisation_id
FROM coordinators
WHERE id = %(id)s::uuid OR (organisation_id = %(organisation_id)s AND lower(email) = lower(%(email)s))
ORDER BY email <> %(email)s, id
FOR UPDATE

-- name: insert_coordinator
-- The id is the app's user id, or a random one until it is known.
INSERT INTO coordinators (id, organisation_id, full_name, email, locale)
VALUES (
    coalesce(%(id)s::uuid, gen_random_uuid()), %(organisation_id)s, %(full_name)s, %(email)s,
    coalesce(%(locale)s::text, 'nb')
)

-- name: update_coordinator
-- Null keeps the stored value. Digests follow a new id by their foreign key.
UPDATE coordinators
SET id = coalesce(%(id)s::uuid, id), full_name = coalesce(%(full_name)s::text, full_name), email = %(email)s,
    locale = coalesce(%(locale)s::text, locale)
WHERE id = %(known_id)s
    AND (id, full_name, email, locale) IS DISTINCT FROM (
        coalesce(%(id)s::uuid, id), coalesce(%(full_name)s::text, full_name), %(email)s,
        coalesce(%(locale)s::text, locale)
    )

-- name: remove_coordinator
-- Deletes the person's digests as well.
DELETE FROM coordinators
WHERE organisation_id = %(organisation_id)s
    AND (lower(email) = lower(%(email_or_id)s) OR id::text = lower(%(email_or_id)s))

-- name: list_coordinators
SELECT c.organisation_id, c.id, c.full_name, c.email, c.locale
FROM coordinators AS c
JOIN organisations AS o ON o.id = c.organisation_id
WHERE %(slug)s::text IS NULL OR o.slug = %(slug)s
ORDER BY lower(c.email), c.id
