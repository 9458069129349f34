-- name: find_first_run_of_newest_date
-- When the first full run of the newest date began: cron starts three a night. A later date was written by a wrong clock.
SELECT min(started_at)
FROM job_runs
WHERE command = 'run' AND organisation IS NULL AND as_of = (
    SELECT max(as_of) FROM job_runs WHERE command = 'run' AND organisation IS NULL AND as_of <= %(today)s
)

-- name: read_changes
-- The changes since a moment, the most harmful first, at most `most` of each. number: how many there are of this one.
-- person, reason, kind, day and former_day say why; certjob/reports/changes.py has the words. ended_at is that of an
-- exposure: it overlaps with the time since the moment. A contact of no mentor belongs to no organisation. OFFSET 0 makes
-- the planner look up each mentor by index, and the reasons after the sort, so that the first row comes early.
WITH happened (
    what, at, mentor_id, kind, day, former_day, person, reason, threshold_days, ended_at, hidden_until, lapsed_kinds
) AS (
    SELECT t.to_status, t.at, t.mentor_id, c.kind,
        CASE t.to_status
            WHEN 'revoked' THEN (c.revoked_at AT TIME ZONE %(zone)s)::date
            WHEN 'renewed' THEN (
                SELECT max(n.expires_on)
                FROM certificates AS n
                WHERE n.mentor_id = t.mentor_id AND n.kind = c.kind AND n.revoked_at IS NULL
            )
            ELSE c.expires_on
        END,
        NULL::date, NULL, NULL, NULL::integer, NULL::timestamptz, NULL::timestamptz, NULL::text[]
    FROM certificate_transitions AS t
    LEFT JOIN certificates AS c ON c.id = t.certificate_id
    WHERE t.at >= %(since)s AND t.to_status IN ('expired', 'renewed', 'revoked')
    UNION ALL
    SELECT 'paused', p.paused_at, p.mentor_id, NULL, NULL, NULL, p.actor, p.reason, NULL, NULL, p.paused_at,
        p.lapsed_kinds
    FROM mentor_pauses AS p
    WHERE p.paused_at >= %(since)s
    UNION ALL
    SELECT 'pause_lifted', p.lifted_at, p.mentor_id, NULL, NULL, NULL, p.lifted_by, p.reason, NULL, NULL, NULL, NULL
    FROM mentor_pauses AS p
    WHERE p.lifted_at >= %(since)s
    UNION ALL
    SELECT
        CASE
            WHEN r.command = 'reconcile' THEN 'corrected'
            WHEN e.wanted_until <> before.wanted_until THEN 'moved'
            WHEN e.visible THEN 'shown'
            ELSE 'hidden'
        END,
        e.delivered_at, e.mentor_id, NULL, NULL, before.wanted_until, NULL,
        CASE
            WHEN r.counts #> '{corrected,last_day}' ? e.mentor_id::text THEN 'last_day'
            WHEN e.visible THEN 'visible'
        END, NULL, NULL, CASE WHEN NOT e.visible THEN e.delivered_at END, NULL
    FROM portal_sync_events AS e
    LEFT JOIN job_runs AS r ON r.id = e.run_id
    LEFT JOIN LATERAL (
        SELECT p.wanted_until
        FROM portal_sync_events AS p
        WHERE p.mentor_id = e.mentor_id AND p.id < e.id AND p.status = 'delivered'
            AND p.claim_contact_id = e.claim_contact_id
        ORDER BY p.id DESC
        LIMIT 1
    ) AS before ON e.visible
    WHERE e.status = 'delivered' AND e.delivered_at >= %(since)s
    UNION ALL
    SELECT 'exposed', x.began_at, x.mentor_id, NULL, NULL, NULL, NULL, NULL, NULL, x.ended_at,
        coalesce(x.ended_at, now()), NULL
    FROM certjob_private.exposures(%(since)s, %(today)s, %(zone)s) AS x
    UNION ALL
    SELECT 'reminder_sent', l.sent_at, l.mentor_id, l.kind, l.expires_on, NULL, NULL, NULL, l.threshold_days, NULL, NULL,
        NULL
    FROM cert_notification_log AS l
    WHERE l.status = 'sent' AND l.sent_at >= %(since)s
    UNION ALL
    -- The last day has changed, so the reminder was queued again.
    SELECT 'reminder_sent', (h ->> 'sent_at')::timestamptz, l.mentor_id, l.kind, (h ->> 'expires_on')::date, NULL, NULL,
        NULL, l.threshold_days, NULL, NULL, NULL
    FROM cert_notification_log AS l
    CROSS JOIN LATERAL jsonb_array_elements(l.history) AS h
    WHERE l.history <> '[]' AND h ->> 'status' = 'sent' AND (h ->> 'sent_at')::timestamptz >= %(since)s
    UNION ALL
    SELECT 'unknown_contact', u.first_seen_at, NULL, NULL, NULL, NULL, NULL, u.contact_id::text, NULL, NULL, NULL, NULL
    FROM portal_unknown_contacts AS u
    WHERE u.first_seen_at >= %(since)s AND u.gone_at IS NULL AND %(organisation_id)s::uuid IS NULL
), numbered AS (
    SELECT h.*, o.slug AS organisation, m.member_no, m.full_name, m.left_at <= h.at AS has_left, m.certified_until,
        o.optional_kinds,
        array_position(%(order)s::text[], h.what) AS rank,
        row_number() OVER (PARTITION BY h.what ORDER BY h.at, m.member_no, h.mentor_id) AS place,
        count(*) OVER (PARTITION BY h.what) AS number
    FROM happened AS h
    LEFT JOIN LATERAL (
        SELECT n.organisation_id, n.member_no, n.full_name, n.left_at, n.certified_until
        FROM mentors AS n
        WHERE n.id = h.mentor_id
        OFFSET 0
    ) AS m ON true
    LEFT JOIN organisations AS o ON o.id = m.organisation_id
    WHERE %(organisation_id)s::uuid IS NULL OR m.organisation_id = %(organisation_id)s
)
SELECT n.what, greatest(n.at, '0001-01-02Z') AS at, n.ended_at, n.organisation, n.member_no, n.full_name, n.mentor_id,
    coalesce(n.kind, lapsed.kind) AS kind, told.day, lapsed.is_revoked, n.former_day,
    coalesce(n.person, hide.actor) AS person, coalesce(n.reason, hide.reason) AS reason, n.threshold_days, n.has_left,
    n.certified_until, n.number, failed.since AS failed_since, failed.until AS failed_until,
    coalesce(failed.cause, held.cause) AS cause
FROM (SELECT s.* FROM numbered AS s WHERE s.place <= %(most)s ORDER BY s.rank, s.place OFFSET 0) AS n
-- The pause that explains a hide or an exposure: a person's that was open when it began, otherwise certjob's own.
LEFT JOIN LATERAL (
    SELECT p.actor, p.reason, p.lapsed_kinds
    FROM mentor_pauses AS p
    WHERE n.hidden_until IS NOT NULL AND n.reason IS NULL
        AND p.mentor_id = n.mentor_id AND (p.lifted_at IS NULL OR p.lifted_at > n.at)
        AND p.paused_at <= CASE p.actor WHEN 'certjob' THEN n.hidden_until ELSE n.at END
    ORDER BY p.actor = 'certjob', p.paused_at DESC
    LIMIT 1
) AS hide ON true
-- The last certificate that had lapsed then: of certjob's pause or, without one, of a kind that was not in force.
LEFT JOIN LATERAL (
    SELECT c.kind, CASE WHEN ends.revoked THEN (c.revoked_at AT TIME ZONE %(zone)s)::date ELSE c.expires_on END AS day,
        ends.revoked AS is_revoked
    FROM certificates AS c
    CROSS JOIN LATERAL (
        SELECT (c.expires_on + 1)::timestamp AT TIME ZONE %(zone)s AS at,
            coalesce(c.revoked_at < (c.expires_on + 1)::timestamp AT TIME ZONE %(zone)s, false) AS revoked
    ) AS ends
    WHERE n.hidden_until IS NOT NULL
        AND coalesce(n.reason, hide.reason, 'certification_expired') = 'certification_expired'
        AND c.mentor_id = n.mentor_id AND c.kind <> ALL (n.optional_kinds)
        AND CASE WHEN ends.revoked THEN c.revoked_at ELSE ends.at END <= n.at
        AND CASE
            WHEN coalesce(n.lapsed_kinds, hide.lapsed_kinds, '{}') <> '{}'
                THEN c.kind = ANY (coalesce(n.lapsed_kinds, hide.lapsed_kinds))
            ELSE NOT EXISTS (
                SELECT FROM certificates AS f
                WHERE f.mentor_id = c.mentor_id AND f.kind = c.kind AND (f.revoked_at IS NULL OR f.revoked_at > n.at)
                    AND (n.at AT TIME ZONE %(zone)s)::date BETWEEN f.issued_on AND f.expires_on
            )
        END
    ORDER BY CASE WHEN ends.revoked THEN c.revoked_at ELSE ends.at END DESC, c.kind
    LIMIT 1
) AS lapsed ON true
-- The app can write days that Python cannot represent.
LEFT JOIN LATERAL (
    SELECT greatest(least(known.day, '9999-12-31'), '0001-01-02') AS day
    FROM (VALUES (coalesce(n.day, lapsed.day))) AS known (day)
    WHERE known.day IS NOT NULL
) AS told ON true
-- Why an exposure lasted: the push failed, or a guard holds the hide.
LEFT JOIN LATERAL (
    SELECT f.failure_code AS cause, f.created_at AS since, f.last_failed_at AS until
    FROM dynamics_sync_failures AS f
    WHERE n.what = 'exposed' AND f.mentor_id = n.mentor_id AND f.last_failed_at >= n.at AND f.created_at <= n.hidden_until
    ORDER BY f.last_failed_at DESC
    LIMIT 1
) AS failed ON true
LEFT JOIN LATERAL (
    SELECT 'held' AS cause
    FROM held_mentors AS h
    WHERE n.what = 'exposed' AND n.ended_at IS NULL AND h.mentor_id = n.mentor_id
    LIMIT 1
) AS held ON true
ORDER BY n.rank, n.place
