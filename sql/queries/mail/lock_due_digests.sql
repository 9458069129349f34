-- Untried before retried, oldest first. Of a coordinator only the newest one, and none while another is just being sent: what
-- it is to tell begins where that one ends. Nor one that has just been settled, a moment after supersede_digests: it has
-- yet to hand on that it may have arrived. None of a later day: the night of that day will not be over. No delay is
-- longer than a day, so what is due beyond that was written by a server whose clock was wrong.
SELECT d.id
FROM coordinator_digests AS d
WHERE d.status = 'pending'
    AND d.digest_on <= %(today)s
    AND (d.next_attempt_at <= now() OR d.next_attempt_at > now() + interval '25 hours')
    AND NOT EXISTS (
        SELECT
        FROM coordinator_digests AS o
        WHERE o.coordinator_id = d.coordinator_id
            AND o.id <> d.id
            AND (
                (o.status IN ('pending', 'failed') AND o.digest_on < d.digest_on)
                OR (o.status = 'pending' AND o.digest_on > d.digest_on AND o.digest_on <= %(today)s + 1)
                OR (
                    o.status = 'pending'
                    AND o.claim_token IS NOT NULL
                    AND o.next_attempt_at > now()
                    AND o.next_attempt_at <= now() + interval '25 hours'
                )
            )
    )
ORDER BY d.attempts, d.next_attempt_at, d.id
LIMIT %(limit)s
FOR NO KEY UPDATE OF d SKIP LOCKED
