-- name: read_alerts
-- The open or the acknowledged alerts, of all or of one mentor.
SELECT alert_id, kind, organisation_id, organisation, mentor_id, member_no, full_name, row_id, since, sentence, cause, error,
    state, next_attempt_at, last_failed_at, calls, number, day, acknowledged_until, acknowledged_because
FROM current_alerts(%(today)s)
WHERE is_acknowledged = %(acknowledged)s AND (mentor_id = %(mentor_id)s::uuid OR %(mentor_id)s::uuid IS NULL)
ORDER BY since, alert_id

-- name: list_held_mentors
-- The mentors of each hold, the most harmful changes first.
SELECT a.alert_id, h.mentor_id, h.member_no, a.organisation, h.full_name, h.reason, h.since,
    h.old_last_day, h.new_last_day
FROM current_alerts(%(today)s) AS a
JOIN certjob_private.held_names AS h ON h.organisation_id = a.organisation_id
WHERE a.kind = 'held' AND a.cause = 'changes'
ORDER BY a.since, a.alert_id, h.place
