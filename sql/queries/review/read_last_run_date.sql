-- The guard against a clock that went back: the day of the most recently finished night over all organisations.
SELECT as_of
FROM job_runs
WHERE command = 'run' AND organisation IS NULL AND finished_at IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1
