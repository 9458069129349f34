-- Why stages stopped in the most recently finished delivery: a cron line every 15 minutes does not repeat itself.
SELECT counts -> 'stop_codes'
FROM job_runs
WHERE command IN ('run', 'deliver') AND finished_at IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1
