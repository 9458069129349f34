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
UPDATE job_runs SET told_at = now() WHERE id = %(id)s

-- name: read_known_stops
-- The keys of today's stops that were printed and still last. A stop is over once a later run has done something in its
-- stage. A run without work in the stage does not count.
SELECT DISTINCT stop.code
FROM job_runs AS told
CROSS JOIN LATERAL jsonb_array_elements_text(told.counts -> 'stop_codes') AS stop (code)
WHERE told.command IN ('run', 'deliver')
    AND told.as_of = %(today)s
    AND told.told_at IS NOT NULL
    AND NOT EXISTS (
        SELECT
        FROM job_runs AS later
        WHERE later.as_of = %(today)s
            AND later.started_at > told.started_at
            AND later.counts -> 'worked' ? split_part(stop.code, ':', 1)
    )

-- name: was_overdue_told
-- Whether a delivery of this day has printed the alert of an overdue full run.
SELECT EXISTS (
    SELECT FROM job_runs WHERE command = 'deliver' AND as_of = %(today)s AND told_at IS NOT NULL AND counts ? 'overdue'
)

-- name: read_last_report
-- The last run of the same organisations that printed its alerts: its day, and when it read them.
SELECT as_of, (counts ->> 'alerts_read_at')::timestamptz
FROM job_runs
WHERE command = 'run'
    AND organisation IS NOT DISTINCT FROM %(organisation)s::text
    AND told_at IS NOT NULL
    AND counts ->> 'alerts_read_at' IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1

-- name: is_full_run_overdue
SELECT EXISTS (SELECT FROM current_alerts(%(today)s) WHERE kind = 'no_full_run' AND NOT is_acknowledged)
