-- What needs attention. The commands, the digest and the dashboard all ask these views, so that they agree.

-- The open pushes that failed, or that have been waiting for an hour. A time in the future was written by a wrong
-- clock; it must not hide the push until then.
CREATE VIEW certjob.portal_alerts WITH (security_invoker = true) AS
SELECT
    e.id AS event_id,
    e.mentor_id,
    m.organisation_id,
    m.member_no,
    coalesce(m.full_name, m.member_no) AS full_name,
    e.visible,
    CASE WHEN e.visible
        THEN 'Dynamics sync pending — mentor may still be hidden on portal'
        ELSE 'Dynamics sync pending — mentor may still be visible on portal'
    END AS sentence,
    coalesce(f.error, e.last_error) AS error,
    coalesce(f.attempts, 0) AS attempts,
    e.wanted_at,
    f.last_failed_at,
    CASE WHEN f.id IS NOT NULL THEN f.failure_code WHEN e.last_error IS NOT NULL THEN e.failure_code END AS code
FROM certjob.portal_sync_events AS e
JOIN certjob.mentors AS m ON m.id = e.mentor_id
LEFT JOIN certjob.dynamics_sync_failures AS f ON f.mentor_id = e.mentor_id AND f.resolved_at IS NULL
WHERE e.status IN ('pending', 'blocked')
    AND (f.id IS NOT NULL OR e.wanted_at < now() - interval '1 hour' OR e.wanted_at > now() + interval '1 hour')
ORDER BY e.visible, e.wanted_at, e.id;

-- One row for each thing that needs attention:
--   kind      what it is; a new kind also needs a member of Kind in certjob/review/attention.py
--   row_id    its row in the table of the kind
--   alert_id  stays the same as long as it is the same thing
--   since     when it became an alert
--   until     the last day on which it matters; null: as long as the row exists
-- Held and unreviewed mentors count only while one of them is due on that day: two runs that cross leave nothing
-- behind. The planner knows nothing about such small tables. LIMIT 1 and OFFSET 0 make it look each mentor up by an
-- index.
CREATE VIEW certjob.attention WITH (security_invoker = true) AS
SELECT
    'held' AS kind,
    h.organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    'held:' || h.what AS alert_id,
    h.since,
    NULL::date AS until
FROM certjob.held_reviews AS h
LEFT JOIN LATERAL (
    SELECT m.id FROM certjob.mentors AS m
    WHERE m.organisation_id = h.organisation_id AND m.review_on <= h.as_of
    ORDER BY m.review_on, m.id
    LIMIT 1
) AS due ON true
WHERE h.what = 'portal' OR due.id IS NOT NULL
UNION ALL
SELECT 'never_reviewed', m.organisation_id, p.mentor_id, NULL, 'problem:' || p.mentor_id, p.since, NULL
FROM certjob.review_problems AS p
CROSS JOIN LATERAL (
    SELECT o.organisation_id FROM certjob.mentors AS o WHERE o.id = p.mentor_id AND o.review_on <= p.as_of OFFSET 0
) AS m
UNION ALL
SELECT
    CASE WHEN a.visible THEN 'may_be_hidden' ELSE 'may_be_visible' END,
    a.organisation_id,
    a.mentor_id,
    a.event_id,
    'push:' || a.event_id || CASE WHEN a.visible THEN ':true' ELSE ':false' END,
    least(a.wanted_at + interval '1 hour', (
        SELECT f.created_at FROM certjob.dynamics_sync_failures AS f
        WHERE f.mentor_id = a.mentor_id AND f.resolved_at IS NULL
    )),
    NULL
FROM certjob.portal_alerts AS a
UNION ALL
SELECT 'unknown_contacts', NULL, NULL, NULL, 'contact:' || u.contact_id, u.first_seen_at, NULL
FROM certjob.portal_unknown_contacts AS u
WHERE u.gone_at IS NULL AND u.accepted_at IS NULL
UNION ALL
SELECT 'portal_not_read', NULL, NULL, NULL, 'reading', r.read_at + interval '3 days', NULL
FROM certjob.portal_last_reading AS r
WHERE r.read_at < now() - interval '3 days'
    AND EXISTS (SELECT FROM certjob.organisations AS o WHERE o.portal IS NOT NULL)
UNION ALL
-- Counted from the day of the threshold, or from the day it was queued if that is later, as after an import.
SELECT 'failed_reminders', m.organisation_id, l.mentor_id, l.id, 'reminder:' || l.id || ':' || l.queued_at::text,
    l.next_attempt_at, greatest(l.expires_on - l.threshold_days, l.queued_at::date) + 14
FROM certjob.cert_notification_log AS l
CROSS JOIN LATERAL (SELECT o.organisation_id FROM certjob.mentors AS o WHERE o.id = l.mentor_id OFFSET 0) AS m
WHERE l.status = 'failed'
UNION ALL
-- A deferred reminder, as for a full mailbox, is tried again until it is too late for it.
SELECT CASE WHEN l.failure_code = 'mail_delayed' THEN 'failed_reminders' ELSE 'waiting_reminders' END, m.organisation_id,
    l.mentor_id, l.id, 'reminder:' || l.id || ':' || l.queued_at::text, l.queued_at + interval '1 day', NULL
FROM certjob.cert_notification_log AS l
CROSS JOIN LATERAL (SELECT o.organisation_id FROM certjob.mentors AS o WHERE o.id = l.mentor_id OFFSET 0) AS m
WHERE l.status = 'pending' AND l.queued_at < now() - interval '1 day'
UNION ALL
SELECT CASE d.status WHEN 'failed' THEN 'failed_digests' ELSE 'waiting_digests' END, c.organisation_id, NULL, d.id,
    'digest:' || d.id || ':' || d.digest_on,
    CASE d.status WHEN 'failed' THEN d.next_attempt_at ELSE d.queued_at + interval '1 day' END, NULL
FROM certjob.coordinator_digests AS d
JOIN certjob.coordinators AS c ON c.id = d.coordinator_id
WHERE d.status = 'failed' OR (d.status = 'pending' AND d.queued_at < now() - interval '1 day');
