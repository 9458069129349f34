-- The last night over all organisations that came to its end, with how long ago that is by the database's own clock.
SELECT id AS run_id, finished_at, now() - finished_at AS age
FROM job_runs
WHERE command = 'run' AND organisation IS NULL AND outcome IN ('ok', 'attention') AND finished_at IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1
