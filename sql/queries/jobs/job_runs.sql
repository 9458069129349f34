-- name: start_job_run
-- The first write of a run. A run that dies leaves this row.
INSERT INTO job_runs (id, command, as_of, organisation, host, version)
VALUES (%(id)s, %(command)s, %(today)s, %(organisation)s, %(host)s, %(version)s)

-- name: touch_job_run
-- An unfinished run with an old last_seen_at has died.
UPDATE job_runs SET last_seen_at = now() WHERE id = %(id)s AND finished_at IS NULL

-- name: finish_job_run
UPDATE job_runs
SET finished_at = now(), last_seen_at = now(), outcome = %(outcome)s, counts = %(counts)s, lines = %(lines)b
WHERE id = %(id)s

-- name: note_told
UPDATE job_runs SET told = %(keys)b WHERE id = %(id)s

-- name: read_told
-- The lines that the commands of this day have printed, and whether a full run is among them.
SELECT told, command = 'run' AND organisation IS NULL AS is_full_run
FROM job_runs
WHERE as_of = %(today)s AND told IS NOT NULL

-- name: is_full_run_missing
-- Whether a full run is overdue and no run of today is at work, which queues digests itself.
SELECT EXISTS (SELECT FROM current_alerts(%(today)s) WHERE kind = 'no_full_run') AND NOT EXISTS (
    SELECT
    FROM job_runs
    WHERE command = 'run' AND as_of = %(today)s AND finished_at IS NULL AND last_seen_at > now() - interval '15 minutes'
)

-- name: read_confirmed_by_coordinators
-- Hides that coordinators have confirmed, and that no full run has printed.
SELECT o.slug, m.member_no, e.hidden_by, e.delivered_at
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
WHERE NOT e.visible
    AND e.hidden_by NOT LIKE 'cli:%%'
    AND NOT EXISTS (
        SELECT
        FROM job_runs AS r
        WHERE r.command = 'run' AND r.organisation IS NULL AND r.told IS NOT NULL AND r.started_at > e.delivered_at
    )
ORDER BY e.delivered_at, m.member_no
