-- What an operator needs to see of each organisation. Mentors who have left are not counted.
SELECT
    o.slug,
    o.name,
    o.portal,
    o.reminder_thresholds AS thresholds,
    o.optional_kinds,
    ARRAY(SELECT c.email FROM coordinators AS c WHERE c.organisation_id = o.id ORDER BY lower(c.email), c.id) AS coordinators,
    (SELECT count(*) FROM mentors AS m WHERE m.organisation_id = o.id AND m.left_at IS NULL) AS mentors
FROM organisations AS o
ORDER BY o.slug
