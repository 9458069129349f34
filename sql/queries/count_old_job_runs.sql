-- What delete_old_job_runs would delete.
WITH kept AS MATERIALIZED (
    (
        SELECT DISTINCT ON (k.command, k.organisation, k.outcome) k.id
        FROM job_runs AS k
        WHERE k.finished_at IS NOT NULL
        ORDER BY k.command, k.organisation, k.outcome, k.finished_at DESC
    )
    UNION
    (
        SELECT DISTINCT ON (k.command, k.organisation) k.id
        FROM job_runs AS k
        ORDER BY k.command, k.organisation, k.started_at DESC
    )
)
SELECT count(*)
FROM job_runs AS r
WHERE greatest(r.started_at, r.last_seen_at, r.finished_at) < %(before)s
    AND r.as_of < %(before_on)s
    AND r.id NOT IN (SELECT id FROM kept)
