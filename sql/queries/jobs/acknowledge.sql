-- name: read_alert_causes
-- Why an alert is one. Two reminders of one mentor have one alert id.
SELECT cause FROM current_alerts(%(today)s) WHERE alert_id = %(alert_id)s

-- name: acknowledge_alert
-- With the cause and the number that someone has read: with others the alert returns.
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
-- Alerts that have another cause, or another number, than the one that someone has read: they are new from now on. Without
-- a day an acknowledgement also ends with its alert, so that the next one of the same mentor or contact is not silent.
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
