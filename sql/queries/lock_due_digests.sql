-- Untried before retried, oldest first; never one of a coordinator whose other one is just being sent, since what it is
-- to tell begins where that one ends. No delay is longer than a day, so what is due beyond that was written by a server
-- whose clock was wrong.
SELECT d.id
FROM coordinator_digests AS d
WHERE d.status = 'pending'
    AND (d.next_attempt_at <= now() OR d.next_attempt_at > now() + interval '25 hours')
    AND NOT EXISTS (
        SELECT
        FROM coordinator_digests AS o
        WHERE o.coordinator_id = d.coordinator_id
            AND o.id <> d.id
            AND o.status = 'pending'
            AND o.claim_token IS NOT NULL
            AND o.next_attempt_at > now()
    )
ORDER BY d.attempts, d.next_attempt_at, d.id
LIMIT %(limit)s
FOR NO KEY UPDATE OF d SKIP LOCKED
