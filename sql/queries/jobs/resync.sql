-- name: describe_mentor
-- The state before and after a resync. A mentor with too many rows is broken, so the lists are limited.
SELECT m.member_no, o.portal IS NOT NULL AS has_portal, m.portal_visible AS desired,
    coalesce((
        SELECT array_agg(p.reason ORDER BY p.reason)
        FROM (SELECT left(reason, 201) AS reason FROM mentor_pauses WHERE mentor_id = m.id AND lifted_at IS NULL LIMIT 201) AS p
    ), '{}') AS pauses,
    coalesce((
        SELECT array_agg(
            c.kind || ' ' || c.status || CASE WHEN c.status = 'expired' THEN ' on ' ELSE ' until ' END || c.expires_on
            ORDER BY c.kind, c.expires_on, c.issued_on
        )
        FROM (
            SELECT left(kind, 201) AS kind, status, issued_on, expires_on FROM certificates WHERE mentor_id = m.id LIMIT 200
        ) AS c
    ), '{}') AS certificates,
    (
        SELECT e.visible
        FROM portal_sync_events AS e
        WHERE e.mentor_id = m.id AND e.delivered_at IS NOT NULL
        ORDER BY e.delivered_at DESC
        LIMIT 1
    ) AS acknowledged,
    own.status AS open_push, CASE WHEN own.status = 'pending' THEN own.next_attempt_at END AS next_try_at
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
LEFT JOIN portal_sync_events AS own ON own.mentor_id = m.id AND own.status IN ('pending', 'blocked')
WHERE m.id = %(id)s
