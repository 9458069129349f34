-- A name or a language that was not given stays.
UPDATE coordinators
SET full_name = coalesce(%(full_name)s::text, full_name), email = %(email)s, locale = coalesce(%(locale)s::text, locale)
WHERE id = %(id)s
    AND (full_name, email, locale)
        IS DISTINCT FROM (coalesce(%(full_name)s::text, full_name), %(email)s, coalesce(%(locale)s::text, locale))
