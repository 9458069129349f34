-- The last few runs of each command: the delivery every 15 minutes must not push the nights off the page. A run that has
-- not finished is alive as long as it says so now and then.
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
FROM (SELECT job_runs.*, row_number() OVER (PARTITION BY command ORDER BY started_at DESC) AS number FROM job_runs) AS numbered
WHERE number <= %(limit)s
ORDER BY started_at DESC, id
