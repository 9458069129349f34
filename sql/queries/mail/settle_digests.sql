-- No row back: the token is gone, somebody else took the digest over after the lease; nothing is written.
UPDATE coordinator_digests AS d
SET status = n.status,
    claim_token = NULL,
    attempts = greatest(d.attempts - CASE WHEN n.uncount THEN 1 ELSE 0 END, 0),
    next_attempt_at = now() + make_interval(secs => n.delay_seconds),
    sent_at = CASE WHEN n.status = 'sent' THEN now() ELSE d.sent_at END,
    maybe_sent = d.maybe_sent OR n.maybe_sent,
    last_error = CASE WHEN n.status = 'sent' THEN NULL ELSE coalesce(n.error, d.last_error) END
FROM unnest(
    %(ids)s::bigint[], %(tokens)s::uuid[], %(statuses)s::text[], %(delays)s::float8[], %(uncounts)s::boolean[],
    %(errors)s::text[], %(maybe_sent)s::boolean[]
) AS n (id, token, status, delay_seconds, uncount, error, maybe_sent)
WHERE d.id = n.id AND d.claim_token = n.token
RETURNING d.id, true AS unchanged
