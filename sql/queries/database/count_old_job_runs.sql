-- What delete_old_job_runs would delete.
SELECT count(*)
FROM job_runs AS r
WHERE greatest(r.started_at, r.last_seen_at, r.finished_at) < %(before)s
    AND r.as_of < %(before_on)s
    AND r.id <> ALL (%(kept)s)
