-- An organisation by its slug.
SELECT id FROM organisations WHERE slug = %(slug)s
