-- What an organisation still lacks, as far as one can see from outside.
SELECT
    o.slug,
    EXISTS (SELECT FROM coordinators AS c WHERE c.organisation_id = o.id) AS has_coordinator,
    coalesce(o.contact_email, '') <> '' OR coalesce(o.contact_phone, '') <> '' AS has_contact,
    CASE WHEN o.portal IS NULL THEN 0 ELSE (
        SELECT count(*)
        FROM mentors AS m
        WHERE m.organisation_id = o.id AND m.left_at IS NULL AND m.dynamics_contact_id IS NULL
    ) END AS without_contact_id
FROM organisations AS o
ORDER BY o.slug
