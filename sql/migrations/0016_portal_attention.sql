-- What a reading of the portal found needs attention as well: contacts on which two organisations do not agree, contacts that
-- are no mentor's, and that the portal was not read for three days although it once was. The rest is as in 0015.
CREATE OR REPLACE VIEW attention WITH (security_invoker = true) AS
SELECT 'held' AS kind, h.organisation_id, NULL::uuid AS mentor_id, NULL::bigint AS row_id, 'held:' || h.what AS alert_id,
    h.since, NULL::date AS until
FROM held_reviews AS h
LEFT JOIN LATERAL (
    SELECT m.id FROM mentors AS m
    WHERE m.organisation_id = h.organisation_id AND m.review_on <= h.as_of
    ORDER BY m.review_on, m.id
    LIMIT 1
) AS due ON true
WHERE h.what = 'portal' OR due.id IS NOT NULL
UNION ALL
SELECT 'never_reviewed', m.organisation_id, p.mentor_id, NULL, 'problem:' || p.mentor_id, p.since, NULL
FROM review_problems AS p
CROSS JOIN LATERAL (
    SELECT o.organisation_id FROM mentors AS o WHERE o.id = p.mentor_id AND o.review_on <= p.as_of OFFSET 0
) AS m
UNION ALL
SELECT 'may_be_visible', a.organisation_id, a.mentor_id, a.event_id, 'push:' || a.event_id || ':false',
    least(a.wanted_at + interval '1 hour', (
        SELECT f.created_at FROM dynamics_sync_failures AS f WHERE f.mentor_id = a.mentor_id AND f.resolved_at IS NULL
    )), NULL
FROM portal_alerts AS a
WHERE NOT a.visible
UNION ALL
-- Asked again of the contacts that the last reading found, and no others: a look at all mentors would cost too much.
SELECT 'contradictory', NULL, NULL, NULL, 'contradictory:' || c.contact_id, r.read_at, NULL
FROM portal_last_reading AS r
CROSS JOIN LATERAL unnest(r.contradictory) AS c (contact_id)
CROSS JOIN LATERAL (
    SELECT bool_or(m.portal_visible) AND NOT bool_and(m.portal_visible) AS holds
    FROM organisations AS o
    JOIN mentors AS m ON m.organisation_id = o.id AND m.dynamics_contact_id = c.contact_id
    WHERE o.portal IS NOT NULL
    OFFSET 0
) AS still
WHERE still.holds
UNION ALL
SELECT 'unknown_contacts', NULL, NULL, NULL, 'contact:' || u.contact_id, u.first_seen_at, NULL
FROM portal_unknown_contacts AS u
WHERE u.gone_at IS NULL AND u.accepted_at IS NULL
UNION ALL
SELECT 'portal_not_read', NULL, NULL, NULL, 'reading', r.read_at + interval '3 days', NULL
FROM portal_last_reading AS r
WHERE r.read_at < now() - interval '3 days'
    AND EXISTS (SELECT FROM organisations AS o WHERE o.portal IS NOT NULL)
UNION ALL
SELECT 'may_be_hidden', a.organisation_id, a.mentor_id, a.event_id, 'push:' || a.event_id || ':true',
    least(a.wanted_at + interval '1 hour', (
        SELECT f.created_at FROM dynamics_sync_failures AS f WHERE f.mentor_id = a.mentor_id AND f.resolved_at IS NULL
    )), NULL
FROM portal_alerts AS a
WHERE a.visible
UNION ALL
-- Its day is that of the threshold, or when it was queued late, as after an import, the day it was queued.
SELECT 'failed_reminders', m.organisation_id, l.mentor_id, l.id, 'reminder:' || l.id || ':' || l.queued_at::text,
    l.next_attempt_at, greatest(l.expires_on - l.threshold_days, l.queued_at::date) + 14
FROM cert_notification_log AS l
CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = l.mentor_id OFFSET 0) AS m
WHERE l.status = 'failed'
UNION ALL
-- What the recipient's server defers, as when a mailbox is full, is tried again until it is too late for it.
SELECT CASE WHEN l.failure_code = 'deferred' THEN 'failed_reminders' ELSE 'waiting_reminders' END, m.organisation_id,
    l.mentor_id, l.id, 'reminder:' || l.id || ':' || l.queued_at::text, l.queued_at + interval '1 day', NULL
FROM cert_notification_log AS l
CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = l.mentor_id OFFSET 0) AS m
WHERE l.status = 'pending' AND l.queued_at < now() - interval '1 day'
UNION ALL
SELECT CASE d.status WHEN 'failed' THEN 'failed_digests' ELSE 'waiting_digests' END, c.organisation_id, NULL, d.id,
    'digest:' || d.id || ':' || d.digest_on, CASE d.status WHEN 'failed' THEN d.next_attempt_at ELSE d.queued_at + interval '1 day' END,
    NULL
FROM coordinator_digests AS d
JOIN coordinators AS c ON c.id = d.coordinator_id
WHERE d.status = 'failed' OR (d.status = 'pending' AND d.queued_at < now() - interval '1 day');
