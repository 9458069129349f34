-- name: read_paused_mentors
-- Paused by certjob, and still. Reopened: a person had lifted the pause before.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name, m.member_no,
    EXISTS (
        SELECT
        FROM mentor_pauses AS e
        WHERE e.mentor_id = p.mentor_id
            AND e.reason = p.reason
            AND e.lifted_at BETWEEN p.paused_at - interval '7 days' AND p.paused_at
            AND e.lifted_by IS DISTINCT FROM 'certjob'
    ) AS reopened,
    'paused:' || p.id AS line
FROM mentor_pauses AS p
JOIN mentors AS m ON m.id = p.mentor_id
WHERE p.reason = 'certification_expired'
    AND p.paused_at >= %(since)s
    AND p.lifted_at IS NULL
    AND m.organisation_id = %(organisation_id)s
ORDER BY name, m.member_no

-- name: read_returned_mentors
-- Back again: certjob lifted its pause, and has not opened another.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name, m.member_no,
    EXISTS (SELECT FROM mentor_pauses AS o WHERE o.mentor_id = m.id AND o.lifted_at IS NULL) AS still_paused,
    'back:' || p.id AS line
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
-- Whom somebody had shown or hidden on the portal by hand, and what the portal has confirmed since.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, e.visible AS shown, 'corrected:' || e.id AS line
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
WHERE e.corrects_portal
    AND e.status = 'delivered'
    AND e.delivered_at >= %(since)s
    AND m.organisation_id = %(organisation_id)s
ORDER BY name, m.member_no, e.id

-- name: read_expiring_mentors
-- Mentors with a certificate that ends soon; the rules say whether another one continues it.
SELECT m.id, coalesce(m.full_name, m.member_no) AS name
FROM mentors AS m
WHERE m.organisation_id = %(organisation_id)s
    AND m.left_at IS NULL
    AND m.id IN (
        SELECT c.mentor_id
        FROM certificates AS c
        WHERE c.expires_on BETWEEN %(today)s AND %(today)s + %(within_days)s AND c.revoked_at IS NULL
    )

-- name: read_pending_pushes
-- What the portal may still show wrongly: the same view as the alerts, with what decides why it waits. Whether a run is
-- working on it is over before the mail is read.
SELECT a.full_name AS name, a.member_no, a.visible, a.sentence, a.wanted_at AS since, a.code, e.status,
    e.attempts AS rounds, f.kind AS failure_kind, false AS is_claimed,
    m.dynamics_contact_id IS NOT NULL AS has_contact_id, m.portal_visible IS NULL AS has_new_contact_id,
    'push:' || a.event_id || ':' || a.visible::text AS line
FROM portal_alerts AS a
JOIN portal_sync_events AS e ON e.id = a.event_id
JOIN mentors AS m ON m.id = a.mentor_id
LEFT JOIN dynamics_sync_failures AS f ON f.mentor_id = a.mentor_id AND f.resolved_at IS NULL
WHERE a.organisation_id = %(organisation_id)s

-- name: read_undelivered_reminders
-- Reminders that failed or have waited for more than a day, as long as the alerts show them. One that fails again after a
-- correction is another line; that a mentor has no address is one, however many reminders there are; that one waits,
-- however often it is tried.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, l.expires_on, l.failure_code AS code,
    CASE WHEN l.failure_code = 'no_address' THEN 'noaddress:' || l.mentor_id
        WHEN l.status = 'pending' THEN 'late:' || l.id
        ELSE 'mail:' || l.id || ':' || extract(epoch FROM l.next_attempt_at) END AS line
FROM attention AS a
JOIN cert_notification_log AS l ON l.id = a.row_id
JOIN mentors AS m ON m.id = l.mentor_id
WHERE a.kind IN ('failed_reminders', 'waiting_reminders')
    AND (a.until IS NULL OR a.until >= %(today)s)
    AND a.organisation_id = %(organisation_id)s
ORDER BY l.next_attempt_at, l.id

-- name: read_held_back
-- What the guards hold for the organisation. One whose number of really ended certificates has changed is another line.
SELECT h.what, h.since, h.mentors, CASE h.what WHEN 'reminders' THEN 0 ELSE h.ended_by_calendar END AS ended,
    h.facts_changed AS changed, h.may_be_shown AS shown,
    ARRAY(
        SELECT coalesce(m.full_name, m.member_no) || CASE WHEN m.full_name <> m.member_no THEN ' (' || m.member_no || ')' ELSE '' END
        FROM unnest(h.mentor_ids[:h.may_be_shown]) WITH ORDINALITY AS n (id, number)
        JOIN mentors AS m ON m.id = n.id
        ORDER BY n.number
    ) AS names,
    'held:' || h.what || ':' || extract(epoch FROM h.since) || ':' || h.ended_by_calendar AS line
FROM attention AS a
JOIN held_reviews AS h ON h.organisation_id = a.organisation_id AND a.alert_id = 'held:' || h.what
WHERE a.kind = 'held' AND a.organisation_id = %(organisation_id)s
ORDER BY h.since, h.what

-- name: read_unreviewed_mentors
-- Whom no run could review.
SELECT coalesce(m.full_name, m.member_no) AS name, m.member_no, a.since,
    a.alert_id || ':' || extract(epoch FROM a.since) AS line
FROM attention AS a
JOIN mentors AS m ON m.id = a.mentor_id
WHERE a.kind = 'never_reviewed' AND a.organisation_id = %(organisation_id)s
ORDER BY name, m.member_no
