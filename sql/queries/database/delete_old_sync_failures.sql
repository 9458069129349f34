-- Failures that were resolved long ago, one page by key; never an unresolved one. That certjob resolves by UPDATE is for
-- dashboards, which see what is new; a row as old as this is on none, and its DELETE tells Realtime no more than a number.
WITH page AS MATERIALIZED (
    SELECT id FROM dynamics_sync_failures WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM dynamics_sync_failures AS f
    USING page
    WHERE f.id = page.id AND greatest(f.resolved_at, f.last_failed_at) < %(before)s AND f.resolved_at IS NOT NULL
    RETURNING f.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted
