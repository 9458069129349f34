-- name: read_alerts
-- Everything that needs attention, or that is acknowledged; whoever has waited longest first.
SELECT alert_id, kind, organisation_id, organisation, mentor_id, member_no, full_name, row_id, since, sentence, cause, error,
    state, next_attempt_at, last_failed_at, calls, number, day,
    CASE WHEN is_acknowledged THEN acknowledged_until END AS acknowledged_until,
    CASE WHEN is_acknowledged THEN acknowledged_because END AS acknowledged_because
FROM current_alerts(%(today)s)
WHERE is_acknowledged = %(acknowledged)s
ORDER BY since, alert_id

-- name: count_acknowledged
-- How many alerts someone knows about.
SELECT count(*) FROM current_alerts(%(today)s) WHERE is_acknowledged

-- name: read_open_push
-- A mentor's push that is still open, an alert or not.
SELECT event_id, visible, moves, status, rounds, is_claimed, cause, error, calls, wanted_at, failing_since, last_failed_at,
    next_attempt_at
FROM open_pushes
WHERE mentor_id = %(mentor_id)s
