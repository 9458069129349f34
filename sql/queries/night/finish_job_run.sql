-- The end of a run, whatever it was.
UPDATE job_runs
SET finished_at = now(), last_seen_at = now(), outcome = %(outcome)s, counts = %(counts)s
WHERE id = %(id)s
