-- name: read_alert_cause
SELECT cause FROM current_alerts(%(today)s) WHERE alert_id = %(alert_id)s

-- name: acknowledge_alert
-- Stores the fingerprint: an alert with another one returns.
INSERT INTO acknowledgements AS k (alert_id, fingerprint, because, until, acknowledged_by)
SELECT a.alert_id, a.fingerprint, %(because)s, %(until)s, %(who)s
FROM current_alerts(%(today)s) AS a
WHERE a.alert_id = %(alert_id)s
ON CONFLICT (alert_id) DO UPDATE
SET fingerprint = excluded.fingerprint, because = excluded.because, until = excluded.until,
    acknowledged_by = excluded.acknowledged_by, acknowledged_at = now(), is_told = true, ended_at = NULL

-- name: list_acknowledgements
-- The open ones, and those that no run has printed.
SELECT alert_id, acknowledged_by, until, is_told
FROM acknowledgements
WHERE ended_at IS NULL OR NOT is_told
ORDER BY acknowledged_at, alert_id

-- name: note_told_acknowledgements
UPDATE acknowledgements SET is_told = true WHERE NOT is_told AND alert_id = ANY (%(alert_ids)b)

-- name: end_acknowledgements
-- Ends acknowledgements of alerts that are over or have another fingerprint, because they must not cover the next alert
-- of the same mentor or contact.
UPDATE acknowledgements AS k
SET ended_at = now()
WHERE k.ended_at IS NULL
    AND (k.until IS NULL OR k.until >= %(today)s)
    AND k.alert_id NOT IN (SELECT a.alert_id FROM current_alerts(%(today)s) AS a WHERE a.is_acknowledged)
