-- The id is the app's user id where it is known; until then one of our own.
INSERT INTO coordinators (id, organisation_id, full_name, email, locale)
VALUES (
    coalesce(%(id)s::uuid, gen_random_uuid()), %(organisation_id)s, %(full_name)s, %(email)s,
    coalesce(%(locale)s::text, 'nb')
)
