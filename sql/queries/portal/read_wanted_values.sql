-- What find_portal_mentors found, under the lock: facts may have changed since.
SELECT m.id, m.portal_visible
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = ANY (%(ids)s::uuid[])
    AND o.portal IS NOT NULL
    AND m.dynamics_contact_id IS NOT NULL
    AND (
        m.portal_visible IS FALSE
        OR (
            m.portal_visible
            AND m.review_on > %(today)s
            AND (
                EXISTS (SELECT FROM certificates AS c WHERE c.mentor_id = m.id AND c.status IN ('valid', 'expiring'))
                OR EXISTS (
                    SELECT FROM portal_sync_events AS e WHERE e.mentor_id = m.id AND e.visible AND e.status = 'delivered'
                )
            )
        )
    )
