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

-- name: read_pending_pushes
-- Mentors who may still be shown or hidden wrongly on the portal, as in the alerts.
SELECT full_name AS name, member_no, kind = 'may_be_hidden' AS is_show, since, cause,
    keys
FROM current_alerts(%(today)s)
WHERE kind IN ('may_be_visible', 'may_be_hidden')
    AND organisation_id = %(organisation_id)s
    AND NOT is_acknowledged

-- name: read_hidden_by_hand
-- Mentors whom someone has hidden by hand, while no later reading of the portal has confirmed it.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, h.name AS by, h.since
FROM certjob_private.hidden_by_hand AS h
JOIN mentors AS m ON m.id = h.mentor_id
WHERE m.organisation_id = %(organisation_id)s AND NOT h.is_read
ORDER BY h.since, m.member_no

-- name: read_unknown_contacts
-- Contacts on the portal that belong to no mentor. They may be of any organisation that uses the portal.
SELECT split_part(a.alert_id, ':', 3) AS name, a.since, a.keys
FROM current_alerts(%(today)s) AS a
WHERE a.kind = 'unknown_contacts' AND NOT a.is_acknowledged
    AND (SELECT o.portal IS NOT NULL FROM organisations AS o WHERE o.id = %(organisation_id)s)
ORDER BY a.since, name

-- name: read_undelivered_reminders
-- Reminders that failed or have waited for more than a day, as in the alerts.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, l.expires_on, l.expires_on - %(today)s AS days_left,
    coalesce(l.failure_code, 'mail_stopped') AS cause,
    a.keys
FROM current_alerts(%(today)s) AS a
JOIN cert_notification_log AS l ON l.id = a.row_id
JOIN mentors AS m ON m.id = l.mentor_id
WHERE a.kind IN ('failed_reminders', 'waiting_reminders')
    AND a.organisation_id = %(organisation_id)s
    AND NOT a.is_acknowledged
ORDER BY l.next_attempt_at, l.id

-- name: read_held_back
-- The held mentors, with the names of the twenty with the most harmful changes. is_danger: someone may be visible who must
-- not be.
SELECT a.cause AS what, a.number AS mentors, a.since, a.keys, named.list AS named,
    coalesce(named.list[1] ->> 'reason' IN ('revoked', 'left', 'ended', 'new_contact'), false) AS is_danger
FROM current_alerts(%(today)s) AS a
CROSS JOIN LATERAL (
    SELECT ARRAY(
        SELECT jsonb_build_object('name', n.full_name, 'member_no', n.member_no, 'reason', n.reason,
            'old_on', n.old_last_day, 'new_on', n.new_last_day)
        FROM certjob_private.held_names AS n
        WHERE n.organisation_id = a.organisation_id AND a.cause = 'changes' AND n.place <= 20
        ORDER BY n.place
    ) AS list
) AS named
WHERE a.kind = 'held' AND a.organisation_id = %(organisation_id)s
ORDER BY a.since, a.cause

-- name: read_unreviewed_mentors
-- Mentors who could not be reviewed.
SELECT full_name AS name, member_no, since, keys
FROM current_alerts(%(today)s)
WHERE kind = 'never_reviewed' AND organisation_id = %(organisation_id)s
ORDER BY name, member_no

-- name: read_missing_run
-- One row if no run has included the organisation for 26 hours, with the number of mentors who must not be visible
-- and may still be.
SELECT a.day AS since, a.keys, (
        SELECT count(*)
        FROM certjob_private.unhidden_mentors(%(today)s) AS u
        WHERE u.organisation_id = %(organisation_id)s
    ) AS visible
FROM current_alerts(%(today)s) AS a
WHERE a.kind = 'no_full_run'
    AND a.day IS NOT NULL
    AND NOT EXISTS (
        SELECT
        FROM job_runs AS r
        JOIN organisations AS o ON o.slug = r.organisation
        WHERE o.id = %(organisation_id)s
            AND r.command = 'run'
            AND r.outcome IN ('ok', 'attention')
            AND r.finished_at > now() - interval '26 hours'
    )

-- name: read_missing_facts
-- Facts of the app that were not copied may concern any organisation.
SELECT since, keys
FROM current_alerts(%(today)s)
WHERE kind = 'facts_missing'

-- name: read_uncertified_mentors
-- Active mentors who have never had a certificate of a kind that counts. They are hidden and get no reminders.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, 'uncertified:' || m.id AS key, (
        SELECT min(c.issued_on)
        FROM certificates AS c
        WHERE c.mentor_id = m.id AND c.kind <> ALL (o.optional_kinds) AND c.issued_on > %(today)s
    ) AS begins
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.organisation_id = %(organisation_id)s AND m.without_certificate AND m.left_at IS NULL
ORDER BY name, m.member_no

-- name: count_acknowledged_of
-- The number of acknowledged alerts of the organisation, and the day on which the first returns.
SELECT count(*), min(acknowledged_until) + 1
FROM current_alerts(%(today)s)
WHERE organisation_id = %(organisation_id)s AND is_acknowledged
