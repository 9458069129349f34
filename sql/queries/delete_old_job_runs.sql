-- The ledger of runs, one page by key. What is read of old rows stays: of each kind of run, and of each way in which it
-- ended, the last one (what was the last night, the last good one, why did it stop), and the one that began last, which
-- is the full night that made good for a wrong clock before it. A row about a day that is still to come is the memory of
-- such a clock, and stays until then. A run that has neither ended nor been seen for so long has died.
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
), page AS MATERIALIZED (
    SELECT id FROM job_runs WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM job_runs AS r
    USING page
    WHERE r.id = page.id
        AND greatest(r.started_at, r.last_seen_at, r.finished_at) < %(before)s
        AND r.as_of < %(before_on)s
        AND r.id NOT IN (SELECT id FROM kept)
    RETURNING r.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted
