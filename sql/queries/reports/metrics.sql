-- name: read_run_metrics
-- The last finished run of each command that monitoring watches, and its last success, whichever of them writes the file.
-- As in `certjob status`, a night over one organisation alone is none.
SELECT
    watched.command,
    extract(epoch FROM last.finished_at)::float8 AS finished_at,
    extract(epoch FROM last.finished_at - last.started_at)::float8 AS duration_seconds,
    last.outcome,
    last.counts,
    extract(epoch FROM succeeded.finished_at)::float8 AS succeeded_at
FROM (VALUES ('run'), ('deliver')) AS watched (command)
CROSS JOIN LATERAL (
    SELECT started_at, finished_at, outcome, counts
    FROM job_runs
    WHERE command = watched.command AND organisation IS NULL AND finished_at IS NOT NULL
    ORDER BY finished_at DESC
    LIMIT 1
) AS last
LEFT JOIN LATERAL (
    SELECT finished_at
    FROM job_runs
    WHERE command = watched.command
        AND organisation IS NULL
        AND finished_at IS NOT NULL
        AND outcome IN ('ok', 'attention')
    ORDER BY finished_at DESC
    LIMIT 1
) AS succeeded ON true

-- name: count_unresolved_failures
-- Mentors whose push has failed and has not succeeded since.
SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL

-- name: read_last_portal_reading
-- When the portal was last read, and how many differences there were of each kind.
SELECT read_at, differences FROM portal_last_reading
