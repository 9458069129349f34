-- The three answers: no row (token gone, nothing is written), unchanged, or raised (a newer wish came during the call:
-- pending, due now, nothing resolved; what was withdrawn stays so).
UPDATE portal_sync_events AS e
SET status = CASE
        WHEN e.status = 'withdrawn' THEN e.status
        WHEN e.version = n.version THEN n.status
        ELSE 'pending'
    END,
    claim_token = NULL,
    attempts = greatest(e.attempts - CASE WHEN e.version = n.version AND n.uncount THEN 1 ELSE 0 END, 0),
    next_attempt_at = CASE
        WHEN e.version = n.version THEN now() + make_interval(secs => n.delay_seconds) ELSE now()
    END,
    delivered_at = CASE WHEN e.version = n.version AND n.status = 'delivered' THEN now() ELSE e.delivered_at END,
    last_error = CASE
        WHEN e.version <> n.version THEN e.last_error
        WHEN n.status = 'delivered' THEN NULL
        ELSE coalesce(n.error, e.last_error)
    END
FROM unnest(
    %(ids)b::bigint[], %(tokens)b::uuid[], %(versions)b::int[], %(statuses)b::text[], %(delays)b::float8[],
    %(uncounts)b::boolean[], %(errors)b::text[]
) AS n (id, token, version, status, delay_seconds, uncount, error)
WHERE e.id = n.id AND e.claim_token = n.token
RETURNING e.id, e.version = n.version AS unchanged
