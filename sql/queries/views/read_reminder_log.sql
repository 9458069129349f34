-- What queue_reminders would make of each reminder that a mentor's certificates already have in the log, for a look at
-- it beforehand: whether it was sent about the date as it is now, and in which cycle and as what it would go out.
SELECT l.id, l.cert_id, l.threshold_days,
    l.history @> sent.entry OR (l.expires_on = c.expires_on AND l.status = 'sent') AS sent,
    CASE WHEN l.expires_on = c.expires_on THEN l.sent_at END AS sent_at,
    CASE WHEN l.expires_on = c.expires_on AND l.status = 'failed' THEN coalesce(l.last_error, '') END AS failed,
    coalesce(
        (
            SELECT min(earlier.number) - 1
            FROM jsonb_array_elements(l.history || jsonb_build_array(jsonb_build_object('expires_on', l.expires_on))) WITH ORDINALITY AS earlier (entry, number)
            WHERE earlier.entry -> 'expires_on' = to_jsonb(c.expires_on)
        ),
        jsonb_array_length(l.history) + rearm.wanted::int
    )::int AS cycle,
    CASE
        WHEN rearm.wanted AND l.expires_on <> c.expires_on THEN l.history @> unknown.entry
        ELSE l.maybe_sent OR l.claim_token IS NOT NULL OR l.history @> unknown.entry
    END AS repeat
FROM cert_notification_log AS l
JOIN certificates AS c ON c.id = l.cert_id
CROSS JOIN LATERAL (
    SELECT jsonb_build_array(jsonb_build_object('expires_on', c.expires_on, 'status', 'sent')) AS entry
) AS sent
CROSS JOIN LATERAL (
    SELECT jsonb_build_array(jsonb_build_object('expires_on', c.expires_on, 'maybe_sent', true)) AS entry
) AS unknown
CROSS JOIN LATERAL (
    SELECT l.expires_on <> c.expires_on OR l.status IN ('cancelled', 'superseded') AS wanted
) AS rearm
WHERE l.mentor_id = %(mentor_id)s
