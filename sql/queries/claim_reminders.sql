-- Untried before retried, oldest first: what a server keeps refusing must not hold up the others for ever. A row whose
-- lease ran out was claimed by a process that vanished: its mail may have been sent.
WITH untried AS MATERIALIZED (
    SELECT id, next_attempt_at
    FROM cert_notification_log
    WHERE status = 'pending' AND next_attempt_at <= now() AND attempts = 0
    ORDER BY next_attempt_at, id
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), tried AS MATERIALIZED (
    SELECT id, next_attempt_at
    FROM cert_notification_log
    WHERE status = 'pending' AND next_attempt_at <= now() AND attempts > 0
    ORDER BY next_attempt_at, id
    LIMIT %(limit)s - (SELECT count(*) FROM untried)
    FOR NO KEY UPDATE SKIP LOCKED
), due AS (
    SELECT id, next_attempt_at FROM untried UNION ALL SELECT id, next_attempt_at FROM tried
)
UPDATE cert_notification_log AS l
SET claim_token = %(token)s,
    attempts = l.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s),
    maybe_sent = l.maybe_sent OR l.claim_token IS NOT NULL
FROM due
WHERE l.id = due.id
RETURNING l.id, l.mentor_id, l.threshold_days, l.cert_id, l.expires_on, l.attempts, l.claim_token, l.maybe_sent,
    jsonb_array_length(l.history) AS cycle, due.next_attempt_at AS due_at
