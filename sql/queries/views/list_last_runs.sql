-- The last few runs of each command: the delivery every 15 minutes must not push the nights off the page; and the last one
-- in a week that failed, and that never ended, however many came after it: an hourly night must not hide them. A run that
-- has not finished is alive as long as it says so now and then.
SELECT
    id AS run_id,
    command,
    organisation,
    host,
    version,
    as_of,
    started_at,
    last_seen_at,
    finished_at,
    coalesce(outcome, CASE WHEN last_seen_at < now() - %(silence)s::interval THEN 'died' ELSE 'running' END) AS outcome
FROM (
    SELECT
        job_runs.*,
        row_number() OVER (PARTITION BY command ORDER BY started_at DESC) AS number,
        row_number() OVER (PARTITION BY command, outcome ORDER BY started_at DESC) AS number_of_outcome
    FROM job_runs
) AS numbered
WHERE number <= %(limit)s
    OR (
        number_of_outcome = 1
        AND coalesce(outcome, 'died') NOT IN ('ok', 'attention')
        AND started_at > now() - interval '7 days'
    )
ORDER BY started_at DESC, id
