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

-- name: is_first_report
-- Whether no other run of the same organisations has printed its report on this day.
SELECT NOT EXISTS (
    SELECT
    FROM job_runs
    WHERE command = 'run'
        AND as_of = %(today)s
        AND organisation IS NOT DISTINCT FROM %(organisation)s::text
        AND told_at IS NOT NULL
)

-- name: note_told_alerts
INSERT INTO told_alerts (alert_id, fingerprint, day)
SELECT alert_id, fingerprint, %(today)s
FROM unnest(%(alert_ids)b::text[], %(fingerprints)b::text[]) AS told (alert_id, fingerprint)
ON CONFLICT DO NOTHING

-- name: forget_told_alerts
DELETE FROM told_alerts WHERE day < %(today)s - 7

-- name: is_full_run_overdue
SELECT EXISTS (SELECT FROM current_alerts(%(today)s) WHERE kind = 'no_full_run' AND NOT is_acknowledged)
