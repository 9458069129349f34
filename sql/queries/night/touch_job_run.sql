-- A run says that it is alive: one that says nothing for long, and has not finished, has died.
UPDATE job_runs SET last_seen_at = now() WHERE id = %(id)s AND finished_at IS NULL
