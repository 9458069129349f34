-- Which of these the upsert of queue_reminders would queue; for the plan and the guards, which write nothing.
SELECT n.mentor_id, n.threshold_days, n.cert_id
FROM unnest(%(mentor_ids)b::uuid[], %(thresholds)b::int[], %(cert_ids)b::uuid[], %(expiries)b::date[])
    AS n (mentor_id, threshold_days, cert_id, expires_on)
LEFT JOIN cert_notification_log AS l
    ON l.mentor_id = n.mentor_id AND l.threshold_days = n.threshold_days AND l.cert_id = n.cert_id
WHERE l.id IS NULL
    OR (
        (l.expires_on <> n.expires_on OR l.status IN ('cancelled', 'superseded'))
        AND NOT l.history @> jsonb_build_array(jsonb_build_object('expires_on', n.expires_on, 'status', 'sent'))
    )
