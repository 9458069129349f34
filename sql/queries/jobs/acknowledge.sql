-- name: read_alert_causes
-- Two reminders of one mentor have the same alert id, so there may be several causes.
SELECT cause FROM current_alerts(%(today)s) WHERE alert_id = %(alert_id)s

-- name: acknowledge_alert
-- Stores the cause, and the number of a hold: an alert with another cause or number returns.
INSERT INTO acknowledgements AS k (alert_id, cause, number, because, until, acknowledged_by)
SELECT a.alert_id, a.cause, CASE a.kind WHEN 'held' THEN a.number END, %(because)s, %(until)s, %(who)s
FROM current_alerts(%(today)s) AS a
WHERE a.alert_id = %(alert_id)s
ORDER BY a.since, a.cause
LIMIT 1
ON CONFLICT (alert_id) DO UPDATE
SET cause = excluded.cause, number = excluded.number, because = excluded.because, until = excluded.until,
    acknowledged_by = excluded.acknowledged_by, acknowledged_at = now(), ended_at = NULL

-- name: end_acknowledgements
-- Ends acknowledgements of alerts that now have another cause or number. Without a day, an acknowledgement also ends with
-- its alert, because it must not cover the next alert of the same mentor or contact.
WITH current AS (
    SELECT alert_id, bool_or(is_acknowledged) AS is_acknowledged FROM current_alerts(%(today)s) GROUP BY alert_id
)
UPDATE acknowledgements AS k
SET ended_at = now()
WHERE k.ended_at IS NULL
    AND (k.until IS NULL OR k.until >= %(today)s)
    AND NOT coalesce(
        (SELECT a.is_acknowledged FROM current AS a WHERE a.alert_id = k.alert_id), k.until IS NOT NULL
    )
