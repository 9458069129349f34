-- An empty cell changes nothing; a mentor who is so already is not written.
UPDATE mentors AS m
SET full_name = coalesce(r.full_name, m.full_name),
    email = coalesce(r.email, m.email),
    locale = coalesce(r.locale, m.locale),
    dynamics_contact_id = coalesce(r.dynamics_contact_id, m.dynamics_contact_id)
FROM (
    SELECT DISTINCT mentor_id, full_name, email, locale, dynamics_contact_id FROM pg_temp.load_rows
) AS r
WHERE m.id = r.mentor_id
    AND (
        (r.full_name IS NOT NULL AND m.full_name IS DISTINCT FROM r.full_name)
        OR (r.email IS NOT NULL AND m.email IS DISTINCT FROM r.email)
        OR (r.locale IS NOT NULL AND m.locale <> r.locale)
        OR (r.dynamics_contact_id IS NOT NULL AND m.dynamics_contact_id IS DISTINCT FROM r.dynamics_contact_id)
    )
