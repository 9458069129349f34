-- Untried before retried, oldest first: what a server keeps refusing must not hold up the others for ever. No delay is
-- longer than a day, so what is due beyond that was written by a server whose clock was wrong. What the night of the day
-- after has queued is left to that day.
WITH untried AS MATERIALIZED (
    SELECT id, next_attempt_at
    FROM cert_notification_log
    WHERE status = 'pending'
        AND (next_attempt_at <= now() OR next_attempt_at > now() + interval '25 hours')
        AND attempts = 0
        AND (%(today)s::date IS NULL OR expires_on - threshold_days <> %(today)s::date + 1)
    ORDER BY next_attempt_at, id
    LIMIT %(limit)s
    FOR NO KEY UPDATE SKIP LOCKED
), tried AS MATERIALIZED (
    SELECT id, attempts, next_attempt_at
    FROM cert_notification_log
    WHERE status = 'pending'
        AND (next_attempt_at <= now() OR next_attempt_at > now() + interval '25 hours')
        AND attempts > 0
        AND (%(today)s::date IS NULL OR expires_on - threshold_days <> %(today)s::date + 1)
    ORDER BY next_attempt_at, id
    LIMIT %(limit)s - (SELECT count(*) FROM untried)
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id
FROM (SELECT id, 0 AS attempts, next_attempt_at FROM untried UNION ALL SELECT id, attempts, next_attempt_at FROM tried) AS due
ORDER BY attempts, next_attempt_at, id
