-- What find_portal_mentors found, under the lock: facts may have changed since.
SELECT m.id, m.portal_visible
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = ANY (%(ids)s::uuid[])
    AND o.portal IS NOT NULL
    AND m.dynamics_contact_id IS NOT NULL
    AND (m.portal_visible IS FALSE OR (m.portal_visible AND m.review_on > %(today)s))
