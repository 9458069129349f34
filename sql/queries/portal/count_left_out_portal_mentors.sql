-- Whether the first may still be shown, only their next review can say; the others nobody has ever certified.
SELECT
    count(*) FILTER (WHERE m.review_on <= %(today)s) AS waiting_for_review,
    count(*) FILTER (WHERE m.review_on > %(today)s) AS never_certified
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE o.portal IS NOT NULL
    AND m.dynamics_contact_id IS NOT NULL
    AND m.portal_visible IS NOT FALSE
    AND NOT (
        m.portal_visible IS TRUE
        AND m.review_on > %(today)s
        AND (
            EXISTS (SELECT FROM certificates AS c WHERE c.mentor_id = m.id AND c.status IN ('valid', 'expiring'))
            OR EXISTS (
                SELECT FROM portal_sync_events AS e WHERE e.mentor_id = m.id AND e.visible AND e.status = 'delivered'
            )
        )
    )
