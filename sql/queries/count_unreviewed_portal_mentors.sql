-- Whether these may still be shown, or what is wanted of them at all, only their next review can say.
SELECT count(*)
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE o.portal IS NOT NULL
    AND m.dynamics_contact_id IS NOT NULL
    AND m.portal_visible IS NOT FALSE
    AND m.review_on <= %(today)s
