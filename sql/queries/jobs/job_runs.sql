-- name: start_job_run
-- Written before anything else, so that a run that dies shows.
INSERT INTO job_runs (id, command, as_of, organisation, host, version)
VALUES (%(id)s, %(command)s, %(today)s, %(organisation)s, %(host)s, %(version)s)

-- name: touch_job_run
-- A run says that it is alive: one that says nothing for long, and has not finished, has died.
UPDATE job_runs SET last_seen_at = now() WHERE id = %(id)s AND finished_at IS NULL

-- name: finish_job_run
-- The end of a run, whatever it was.
UPDATE job_runs
SET finished_at = now(), last_seen_at = now(), outcome = %(outcome)s, counts = %(counts)s
WHERE id = %(id)s

-- name: read_last_stops
-- Why stages stopped in the most recently finished delivery: a cron line every 15 minutes does not repeat itself.
SELECT counts -> 'stop_codes'
FROM job_runs
WHERE command IN ('run', 'deliver') AND finished_at IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1

-- name: was_overdue_told
-- Whether a delivery of this day has said that no full run has finished: it says so once a day.
SELECT EXISTS (SELECT FROM job_runs WHERE command = 'deliver' AND as_of = %(today)s AND counts ? 'overdue')

-- name: read_last_report
-- The last night (over the same organisations) that reported what needs attention: its day, and when it looked.
SELECT as_of, (counts ->> 'alerts_read_at')::timestamptz
FROM job_runs
WHERE command = 'run'
    AND organisation IS NOT DISTINCT FROM %(organisation)s::text
    AND finished_at IS NOT NULL
    AND counts ->> 'alerts_read_at' IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1
