-- name: find_first_run_of_newest_date
-- When the first full run of the newest date began: cron starts three a night. A later date was written by a wrong clock.
SELECT min(started_at)
FROM job_runs
WHERE command = 'run' AND organisation IS NULL AND as_of = (
    SELECT max(as_of) FROM job_runs WHERE command = 'run' AND organisation IS NULL AND as_of <= %(today)s
)

-- name: read_changes
-- The stored changes of each person since a moment, in the order of the first change. An exposure overlaps with the time
-- since the moment. A contact of no mentor belongs to no organisation. Python cannot represent infinity.
WITH happened AS (
    SELECT t.mentor_id, t.at, t.to_status AS what, jsonb_build_object('kind', c.kind, 'day', c.expires_on) AS about
    FROM certificate_transitions AS t
    LEFT JOIN certificates AS c ON c.id = t.certificate_id
    WHERE t.at >= %(since)s AND t.to_status IN ('expired', 'renewed', 'revoked')
    UNION ALL
    SELECT p.mentor_id, p.paused_at, 'paused', jsonb_build_object('by', p.actor, 'reason', p.reason)
    FROM mentor_pauses AS p
    WHERE p.paused_at >= %(since)s
    UNION ALL
    SELECT p.mentor_id, p.lifted_at, 'pause_lifted', jsonb_build_object('by', p.lifted_by, 'reason', p.reason)
    FROM mentor_pauses AS p
    WHERE p.lifted_at >= %(since)s
    UNION ALL
    SELECT e.mentor_id, e.delivered_at, CASE WHEN e.visible THEN 'shown' ELSE 'hidden' END,
        jsonb_build_object('day', e.wanted_until, 'by', r.command)
    FROM portal_sync_events AS e
    LEFT JOIN job_runs AS r ON r.id = e.run_id AND r.command = 'reconcile'
    WHERE e.status = 'delivered' AND e.delivered_at >= %(since)s
    UNION ALL
    SELECT x.mentor_id, greatest(x.began_at, '0001-01-02Z'), 'exposed', jsonb_build_object('ended_at', x.ended_at)
    FROM certjob_private.exposures(%(since)s, %(today)s, %(zone)s) AS x
    UNION ALL
    -- A reminder that was queued again, because the last day has changed, has its earlier mails in its history.
    SELECT l.mentor_id, mail.sent_at, 'reminder_sent',
        jsonb_build_object('kind', l.kind, 'day', mail.day, 'threshold_days', l.threshold_days)
    FROM cert_notification_log AS l
    CROSS JOIN LATERAL (
        SELECT l.sent_at, l.status, l.expires_on AS day
        UNION ALL
        SELECT (h ->> 'sent_at')::timestamptz, h ->> 'status', (h ->> 'expires_on')::date
        FROM jsonb_array_elements(l.history) AS h
    ) AS mail
    WHERE (l.sent_at >= %(since)s OR l.history <> '[]') AND mail.status = 'sent' AND mail.sent_at >= %(since)s
    UNION ALL
    SELECT NULL, u.first_seen_at, 'unknown_contact', jsonb_build_object('contact_id', u.contact_id)
    FROM portal_unknown_contacts AS u
    WHERE u.first_seen_at >= %(since)s AND u.gone_at IS NULL
)
SELECT o.slug AS organisation, m.member_no, m.full_name, h.mentor_id,
    jsonb_agg(
        jsonb_build_object('at', h.at, 'what', h.what) || h.about
        ORDER BY h.at, array_position(%(order)s::text[], h.what), h.about
    ) AS changes
FROM happened AS h
LEFT JOIN mentors AS m ON m.id = h.mentor_id
LEFT JOIN organisations AS o ON o.id = m.organisation_id
WHERE %(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s
GROUP BY h.mentor_id, o.slug, m.id, h.about ->> 'contact_id'
ORDER BY min(h.at), o.slug, m.member_no
