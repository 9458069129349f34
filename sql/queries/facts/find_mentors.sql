-- A mentor by id, member number or e-mail address; the caller deals with none or several. Each by its index, but for the
-- address, which has none: only what can be one is looked for among all. (OFFSET 0: PostgreSQL before 18 would walk the
-- whole index of the numbers, where one look for each organisation does.)
WITH found AS (
    SELECT id, member_no, organisation_id
    FROM mentors
    WHERE id = CASE
        WHEN %(name)s::text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN %(name)s::text::uuid
    END
    UNION
    SELECT m.id, m.member_no, o.id
    FROM organisations AS o
    CROSS JOIN LATERAL (
        SELECT id, member_no FROM mentors WHERE organisation_id = o.id AND member_no = %(name)s OFFSET 0
    ) AS m
    UNION
    SELECT id, member_no, organisation_id
    FROM mentors
    WHERE strpos(%(name)s, '@') > 0 AND lower(email) = lower(%(name)s)
)
SELECT found.id, found.member_no, o.slug AS organisation
FROM found
JOIN organisations AS o ON o.id = found.organisation_id
WHERE %(organisation)s::text IS NULL OR o.slug = %(organisation)s
ORDER BY o.slug, found.member_no
LIMIT 20
