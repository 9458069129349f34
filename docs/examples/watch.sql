-- One row with a sentence if the nightly run is overdue, no row if all is well. See "Watching from the database" in
-- install.md.
SELECT coalesce(
    'the last full run of certjob that did its work ended at ' || to_char(finished_at, 'YYYY-MM-DD HH24:MI TZ'),
    'certjob has never finished a full run'
) AS problem
FROM (
    SELECT max(finished_at) AS finished_at
    FROM certjob.job_runs
    WHERE command = 'run' AND organisation IS NULL AND outcome IN ('ok', 'attention')
        AND finished_at <= now() + interval '1 minute'  -- a later one was recorded by a wrong clock
) AS last
WHERE finished_at IS NULL OR finished_at < now() - interval '26 hours'
