-- Those for whose mentors the portal must be reached.
SELECT o.slug FROM organisations AS o WHERE o.portal IS NOT NULL ORDER BY o.slug
