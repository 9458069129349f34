-- name: read_alert_kind
-- "was_shown": certjob has shown this contact for a mentor, whom people may find there.
SELECT a.kind, EXISTS (
        SELECT
        FROM portal_sync_events AS e
        WHERE e.visible AND a.alert_id LIKE 'all:unknown_contacts:' || e.claim_contact_id || ':%%'
    ) AS was_shown
FROM current_alerts(%(today)s) AS a
WHERE a.alert_id = %(alert_id)s

-- name: acknowledge_alert
INSERT INTO acknowledgements (alert_id, because, until, acknowledged_by)
VALUES (%(alert_id)s, %(because)s, %(until)s, %(who)s)
ON CONFLICT (alert_id) DO UPDATE
SET because = excluded.because, until = excluded.until, acknowledged_by = excluded.acknowledged_by, acknowledged_at = now()

-- name: forget_acknowledged_pushes
-- Someone retries them, so their next failure is an alert.
DELETE FROM acknowledgements AS k
USING portal_sync_events AS e
WHERE e.status IN ('pending', 'blocked') AND k.alert_id LIKE '%%:may_be_hidden:%%:' || e.id

-- name: confirm_hidden
SELECT certjob_private.settle_by_hand(%(mentor_ids)s::uuid[], %(because)s, %(who)s)

-- name: list_open_hides
-- The mentors of an organisation with a hide that a person may confirm.
SELECT e.mentor_id
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
WHERE o.slug = %(slug)s
    AND certjob_private.waits_for_a_person(e)
    AND (e.status IN ('pending', 'blocked') OR certjob_private.must_be_hidden(m, current_date))
    AND NOT EXISTS (SELECT FROM portal_sync_events AS l WHERE l.mentor_id = e.mentor_id AND l.id > e.id)
