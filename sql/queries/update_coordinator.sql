-- A name that was not given stays.
UPDATE coordinators
SET full_name = coalesce(%(full_name)s::text, full_name), email = %(email)s
WHERE id = %(id)s
    AND (full_name, email) IS DISTINCT FROM (coalesce(%(full_name)s::text, full_name), %(email)s)
