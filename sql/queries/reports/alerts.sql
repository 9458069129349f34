-- name: read_open_pushes
-- Those that are alerts, in the order of the view that the app's dashboard reads; or a mentor's, alert or not. With what a
-- person has to know in order to act: why each waits, and until when.
SELECT e.id AS event_id, e.mentor_id, m.organisation_id, o.slug AS organisation, m.member_no,
    coalesce(m.full_name, m.member_no) AS full_name, e.visible, a.sentence,
    coalesce(f.error, e.last_error) AS error,
    CASE WHEN f.id IS NOT NULL THEN f.failure_code WHEN e.last_error IS NOT NULL THEN e.failure_code END AS code,
    coalesce(f.attempts, 0) AS calls, e.wanted_at, f.created_at AS failing_since, f.last_failed_at, e.status,
    e.attempts AS rounds, e.next_attempt_at, f.kind AS failure_kind,
    e.claim_token IS NOT NULL AND e.next_attempt_at > now() AS is_claimed,
    m.dynamics_contact_id IS NOT NULL AS has_contact_id,
    -- A trigger does this when the contact id is changed; the next review undoes it.
    m.portal_visible IS NULL AS has_new_contact_id
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
LEFT JOIN dynamics_sync_failures AS f ON f.mentor_id = e.mentor_id AND f.resolved_at IS NULL
LEFT JOIN portal_alerts AS a
    ON a.event_id = e.id AND (%(mentor_id)s::uuid IS NULL OR a.mentor_id = %(mentor_id)s::uuid)
WHERE e.status IN ('pending', 'blocked')
    AND CASE WHEN %(mentor_id)s::uuid IS NULL THEN a.event_id IS NOT NULL ELSE e.mentor_id = %(mentor_id)s::uuid END
ORDER BY e.visible, e.wanted_at, e.id

-- name: read_unknown_contacts
-- Contacts that the portal shows and nobody has asked for. A mentor of an organisation without a portal may have it.
SELECT u.contact_id, u.first_seen_at AS since, owner.mentor_id, owner.member_no, owner.full_name, owner.organisation
FROM portal_unknown_contacts AS u
LEFT JOIN LATERAL (
    SELECT m.id AS mentor_id, m.member_no, coalesce(m.full_name, m.member_no) AS full_name, o.slug AS organisation
    FROM organisations AS o
    JOIN mentors AS m ON m.organisation_id = o.id AND m.dynamics_contact_id = u.contact_id
    ORDER BY o.slug
    LIMIT 1
) AS owner ON true
WHERE u.gone_at IS NULL AND u.accepted_at IS NULL
ORDER BY u.first_seen_at, u.contact_id

-- name: read_old_reading
-- When the portal was last read, if that is more than three days ago.
SELECT r.read_at
FROM portal_last_reading AS r
JOIN attention AS a ON a.kind = 'portal_not_read'

-- name: read_held_mentors
-- Some of those who are held, in the order in which they were stored: who may be shown on the portal stands first.
SELECT m.id AS mentor_id, m.member_no, coalesce(m.full_name, m.member_no) AS full_name,
    n.number <= %(may_be_shown)s AS may_be_shown
FROM unnest(%(ids)b::uuid[]) WITH ORDINALITY AS n (id, number)
JOIN mentors AS m ON m.id = n.id
ORDER BY n.number

-- name: read_review_problems
-- Whom no run could review, and why; whoever has waited longest first.
SELECT a.mentor_id, a.organisation_id, o.slug AS organisation, m.member_no,
    coalesce(m.full_name, m.member_no) AS full_name, p.reason AS error, a.since
FROM attention AS a
JOIN review_problems AS p ON p.mentor_id = a.mentor_id
JOIN mentors AS m ON m.id = a.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
WHERE a.kind = 'never_reviewed'
ORDER BY a.since, a.mentor_id

-- name: read_failed_reminders
-- Reminders that could not be delivered, until they are sent, superseded or 14 days past their day. Also those that the
-- recipient's server has deferred for more than a day, as when a mailbox is full: they are tried again until it is too late
-- for them.
SELECT l.id AS reminder_id, l.mentor_id, a.organisation_id, o.slug AS organisation, m.member_no,
    coalesce(m.full_name, m.member_no) AS full_name, l.threshold_days, l.cert_id, l.expires_on, l.last_error AS error,
    l.failure_code AS code, l.attempts, l.queued_at,
    CASE WHEN l.status = 'pending' THEN l.next_attempt_at END AS next_attempt_at
FROM attention AS a
JOIN cert_notification_log AS l ON l.id = a.row_id
JOIN mentors AS m ON m.id = l.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
WHERE a.kind = 'failed_reminders' AND (a.until IS NULL OR a.until >= %(today)s)
ORDER BY l.queued_at, l.id

-- name: read_failed_digests
-- Coordinators whose daily mail was refused, until their address is corrected or a later digest takes its place.
SELECT d.id AS digest_id, d.coordinator_id, a.organisation_id, o.slug AS organisation,
    coalesce(c.full_name, c.email) AS full_name,
    d.digest_on, d.last_error AS error, d.failure_code AS code, d.attempts, d.queued_at
FROM attention AS a
JOIN coordinator_digests AS d ON d.id = a.row_id
JOIN coordinators AS c ON c.id = d.coordinator_id
JOIN organisations AS o ON o.id = c.organisation_id
WHERE a.kind = 'failed_digests'
ORDER BY d.queued_at, d.id

-- name: read_waiting_mail
-- Mail that has waited for more than a day: how much, since when, and why the mail stage stopped last.
SELECT substring(kind FROM 'waiting_(.*)') AS what, count(*) AS number, min(since) - interval '1 day' AS since, (
        SELECT r.counts ->> 'mail_stop'
        FROM (
            SELECT counts, finished_at FROM job_runs
            WHERE command IN ('run', 'deliver') AND finished_at IS NOT NULL
            ORDER BY finished_at DESC
            LIMIT 200
        ) AS r
        WHERE r.counts ->> 'mail_stop' IS NOT NULL
        ORDER BY r.finished_at DESC
        LIMIT 1
    ) AS error
FROM attention
WHERE kind IN ('waiting_reminders', 'waiting_digests')
GROUP BY kind
ORDER BY kind DESC
