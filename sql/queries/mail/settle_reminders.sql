-- No row back: the token is gone, somebody else took the reminder over after the lease; nothing is written.
UPDATE cert_notification_log AS l
SET status = n.status,
    claim_token = NULL,
    attempts = greatest(l.attempts - CASE WHEN n.uncount THEN 1 ELSE 0 END, 0),
    next_attempt_at = now() + make_interval(secs => n.delay_seconds),
    sent_at = CASE WHEN n.status = 'sent' THEN now() ELSE l.sent_at END,
    maybe_sent = l.maybe_sent OR n.maybe_sent,
    last_error = CASE WHEN n.status = 'sent' THEN NULL ELSE coalesce(n.error, l.last_error) END
FROM unnest(
    %(ids)b::bigint[], %(tokens)b::uuid[], %(statuses)b::text[], %(delays)b::float8[], %(uncounts)b::boolean[],
    %(errors)b::text[], %(maybe_sent)b::boolean[]
) AS n (id, token, status, delay_seconds, uncount, error, maybe_sent)
WHERE l.id = n.id AND l.claim_token = n.token
RETURNING l.id, true AS unchanged
