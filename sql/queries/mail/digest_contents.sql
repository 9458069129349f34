-- name: read_paused_mentors
-- certjob's open pauses. ``reopened``: a person had lifted the pause in the week before.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name, m.member_no,
    EXISTS (
        SELECT
        FROM mentor_pauses AS e
        WHERE e.mentor_id = p.mentor_id
            AND e.reason = p.reason
            AND e.lifted_at BETWEEN p.paused_at - interval '7 days' AND p.paused_at
            AND e.lifted_by IS DISTINCT FROM 'certjob'
    ) AS reopened,
    'paused:' || p.id AS key
FROM mentor_pauses AS p
JOIN mentors AS m ON m.id = p.mentor_id
WHERE p.reason = 'certification_expired'
    AND p.paused_at >= %(since)s
    AND p.lifted_at IS NULL
    AND m.organisation_id = %(organisation_id)s
ORDER BY name, m.member_no

-- name: read_reinstated_mentors
-- The last pause of a mentor that certjob has lifted, if it has not opened another one.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name, m.member_no,
    EXISTS (SELECT FROM mentor_pauses AS o WHERE o.mentor_id = m.id AND o.lifted_at IS NULL) AS still_paused,
    'back:' || p.id AS key
FROM (
    SELECT DISTINCT ON (e.mentor_id) e.id, e.mentor_id
    FROM mentor_pauses AS e
    WHERE e.reason = 'certification_expired' AND e.lifted_at >= %(since)s AND e.lifted_by = 'certjob'
    ORDER BY e.mentor_id, e.lifted_at DESC, e.id
) AS p
JOIN mentors AS m ON m.id = p.mentor_id
WHERE m.organisation_id = %(organisation_id)s
    AND NOT EXISTS (
        SELECT FROM mentor_pauses AS o
        WHERE o.mentor_id = p.mentor_id AND o.reason = 'certification_expired' AND o.lifted_at IS NULL
    )
ORDER BY name, m.member_no

-- name: read_corrected_mentors
-- Mentors with another value on the portal than certjob wanted, which a reading has corrected.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, corrected.what,
    'corrected:' || r.id || ':' || m.id AS key
FROM job_runs AS r
CROSS JOIN LATERAL jsonb_each(r.counts -> 'corrected') AS corrected (what, ids)
CROSS JOIN LATERAL jsonb_array_elements_text(corrected.ids) AS listed (id)
JOIN mentors AS m ON m.id = listed.id::uuid
WHERE r.command = 'reconcile' AND r.started_at >= %(since)s AND m.organisation_id = %(organisation_id)s
ORDER BY name, m.member_no, r.started_at

-- name: read_expiring_mentors
-- Mentors with a certificate that ends soon. The rules decide whether another one continues it.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name, m.member_no
FROM mentors AS m
WHERE m.organisation_id = %(organisation_id)s
    AND m.left_at IS NULL
    AND m.id IN (
        SELECT c.mentor_id
        FROM certificates AS c
        WHERE c.expires_on BETWEEN %(today)s AND %(today)s + %(within_days)s AND c.revoked_at IS NULL
    )

-- name: read_digest_alerts
-- Alerts of the organisation, and those that may concern any organisation.
SELECT a.kind AS alert_kind, CASE a.kind WHEN 'unknown_contacts' THEN split_part(a.alert_id, ':', 3) ELSE a.full_name END AS name,
    a.member_no, a.since, a.day, a.cause, a.number AS mentors, a.keys, a.is_acknowledged, a.acknowledged_until
FROM current_alerts(%(today)s) AS a
WHERE a.organisation_id = %(organisation_id)s OR a.organisation_id IS NULL
ORDER BY a.since, name, a.row_id

-- name: read_held_names
-- The twenty mentors with the most harmful changes.
SELECT full_name AS name, member_no, reason, old_last_day AS old_on, new_last_day AS new_on
FROM certjob_private.held_names
WHERE organisation_id = %(organisation_id)s AND place <= 20
ORDER BY place

-- name: read_hidden_by_hand
-- Mentors whom someone has hidden by hand, while no later reading of the portal has confirmed it.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, h.name AS by, h.since
FROM certjob_private.hidden_by_hand AS h
JOIN mentors AS m ON m.id = h.mentor_id
WHERE m.organisation_id = %(organisation_id)s AND NOT h.is_read
ORDER BY h.since, m.member_no

-- name: count_unhidden_mentors
-- The number of mentors who must not be visible and may still be; null if a run of the organisation has finished in the
-- last 26 hours, or one of today is at work, because it sends digests itself.
SELECT CASE WHEN NOT EXISTS (
        SELECT
        FROM job_runs AS r
        LEFT JOIN organisations AS o ON o.slug = r.organisation
        WHERE r.command = 'run' AND (
            (o.id = %(organisation_id)s AND r.outcome IN ('ok', 'attention') AND r.finished_at > now() - interval '26 hours')
            OR ((r.organisation IS NULL OR o.id = %(organisation_id)s) AND r.as_of = %(today)s AND r.finished_at IS NULL
                AND r.last_seen_at > now() - interval '15 minutes')
        )
    ) THEN (
        SELECT count(*)
        FROM certjob_private.unhidden_mentors(%(today)s) AS u
        WHERE u.organisation_id = %(organisation_id)s
    ) END

-- name: read_uncertified_mentors
-- Active mentors who have never had a certificate of a kind that counts. They are hidden and get no reminders.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, (
        SELECT min(c.issued_on)
        FROM certificates AS c
        WHERE c.mentor_id = m.id AND c.kind <> ALL (o.optional_kinds) AND c.issued_on > %(today)s
    ) AS begins
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.organisation_id = %(organisation_id)s AND m.without_certificate AND m.left_at IS NULL
ORDER BY name, m.member_no
