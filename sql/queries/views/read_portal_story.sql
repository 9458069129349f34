-- What the portal last confirmed, what is still to be pushed, and what went wrong with it. No delay is longer than a day,
-- see lock_due_portal_events.
SELECT confirmed.visible AS confirmed, confirmed.delivered_at AS confirmed_at,
    e.visible, e.status, e.attempts AS rounds, e.wanted_at, coalesce(f.error, e.last_error) AS error,
    CASE WHEN e.next_attempt_at > now() + interval '25 hours' THEN now() ELSE e.next_attempt_at END AS next_attempt_at,
    e.claim_token IS NOT NULL AND e.next_attempt_at > now() AND e.next_attempt_at <= now() + interval '25 hours'
        AS is_claimed,
    f.kind AS failure_kind, f.attempts AS calls, f.created_at AS failing_since, f.last_failed_at,
    (
        SELECT count(*) FROM dynamics_sync_failures AS d WHERE d.mentor_id = m.id AND d.resolved_at IS NOT NULL
    ) AS resolved_failures
FROM mentors AS m
LEFT JOIN LATERAL (
    SELECT d.visible, d.delivered_at
    FROM portal_sync_events AS d
    WHERE d.mentor_id = m.id AND d.delivered_at IS NOT NULL
    ORDER BY d.delivered_at DESC
    LIMIT 1
) AS confirmed ON true
LEFT JOIN portal_sync_events AS e ON e.mentor_id = m.id AND e.status IN ('pending', 'blocked')
LEFT JOIN dynamics_sync_failures AS f ON f.mentor_id = m.id AND f.resolved_at IS NULL
WHERE m.id = %(mentor_id)s
