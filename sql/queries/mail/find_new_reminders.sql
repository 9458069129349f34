-- Which of these the upsert of queue_reminders would queue, after adopt_reminders; for the plan and the guards, which write
-- nothing.
SELECT n.mentor_id, n.threshold_days, n.cert_id
FROM unnest(%(mentor_ids)b::uuid[], %(thresholds)b::int[], %(cert_ids)b::uuid[], %(expiries)b::date[])
    AS n (mentor_id, threshold_days, cert_id, expires_on)
LEFT JOIN LATERAL (
    SELECT o.id, o.expires_on, o.status, o.history
    FROM cert_notification_log AS o
    LEFT JOIN certificates AS h ON h.id = o.cert_id AND h.mentor_id = o.mentor_id
    WHERE o.mentor_id = n.mentor_id
        AND o.threshold_days = n.threshold_days
        AND (
            o.cert_id = n.cert_id
            OR (
                (
                    o.expires_on = n.expires_on
                    OR o.history @> jsonb_build_array(jsonb_build_object('expires_on', n.expires_on))
                )
                AND (h.id IS NULL OR h.kind = (SELECT c.kind FROM certificates AS c WHERE c.id = n.cert_id))
                AND NOT (o.claim_token IS NOT NULL AND o.next_attempt_at > now())
            )
        )
    ORDER BY o.cert_id <> n.cert_id,
        (o.expires_on = n.expires_on AND o.status = 'sent')
        OR o.history @> jsonb_build_array(jsonb_build_object('expires_on', n.expires_on, 'status', 'sent')) DESC,
        o.id
    LIMIT 1
) AS l ON true
WHERE l.id IS NULL
    OR (
        (l.expires_on <> n.expires_on OR l.status IN ('cancelled', 'superseded'))
        AND NOT l.history @> jsonb_build_array(jsonb_build_object('expires_on', n.expires_on, 'status', 'sent'))
    )
