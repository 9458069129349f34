-- A mentor by id, member number or e-mail address; the caller deals with none or several.
SELECT m.id, m.member_no, o.slug AS organisation
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE (m.id::text = lower(%(name)s) OR m.member_no = %(name)s OR lower(m.email) = lower(%(name)s))
    AND (%(organisation)s::text IS NULL OR o.slug = %(organisation)s)
ORDER BY o.slug, m.member_no
LIMIT 20
