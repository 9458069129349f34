-- name: find_portal_mentors
-- Everybody whose wanted value can be pushed again: hides before shows, those confirmed longest ago first, so that runs
-- which end early come round in the end; what is open anyway comes last, since it may be what ends them. A mentor who is
-- due for a review may not be fit to be shown any more; one who was never certified was never shown by certjob, either.
SELECT
    m.id,
    EXISTS (
        SELECT FROM portal_sync_events AS e WHERE e.mentor_id = m.id AND e.status IN ('pending', 'blocked')
    ) AS is_open
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE o.portal IS NOT NULL
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
ORDER BY
    is_open,
    m.portal_visible,
    (SELECT max(e.delivered_at) FROM portal_sync_events AS e WHERE e.mentor_id = m.id) NULLS FIRST,
    m.id

-- name: count_left_out_portal_mentors
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
