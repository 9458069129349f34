-- name: describe_mentor
-- What a resync shows before and after.
SELECT m.member_no, o.portal IS NOT NULL AS has_portal, m.portal_visible AS wanted,
    coalesce((
        SELECT array_agg(p.reason ORDER BY p.reason)
        FROM mentor_pauses AS p
        WHERE p.mentor_id = m.id AND p.lifted_at IS NULL
    ), '{}') AS pauses,
    coalesce((
        SELECT array_agg(c.kind || ' ' || c.status || ' until ' || c.expires_on ORDER BY c.kind, c.expires_on, c.issued_on)
        FROM certificates AS c
        WHERE c.mentor_id = m.id
    ), '{}') AS certificates,
    (
        SELECT e.visible
        FROM portal_sync_events AS e
        WHERE e.mentor_id = m.id AND e.delivered_at IS NOT NULL
        ORDER BY e.delivered_at DESC
        LIMIT 1
    ) AS acknowledged,
    (
        SELECT e.status FROM portal_sync_events AS e WHERE e.mentor_id = m.id AND e.status IN ('pending', 'blocked')
    ) AS open_push
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = %(id)s
