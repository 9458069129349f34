-- The ledger of runs, one page by key, but for what find_kept_job_runs has found. A row about a day that is still to come is
-- the memory of a wrong clock, and stays until then. A run that has neither ended nor been seen for so long has died.
WITH page AS MATERIALIZED (
    SELECT id FROM job_runs WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM job_runs AS r
    USING page
    WHERE r.id = page.id
        AND greatest(r.started_at, r.last_seen_at, r.finished_at) < %(before)s
        AND r.as_of < %(before_on)s
        AND r.id <> ALL (%(kept)s)
    RETURNING r.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted
