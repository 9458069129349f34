-- name: reopen_digests
-- Undelivered digests.
UPDATE coordinator_digests
SET status = 'pending', attempts = 0, next_attempt_at = now()
WHERE id IN (
    SELECT id
    FROM coordinator_digests
    WHERE status = 'failed' OR (status = 'pending' AND next_attempt_at > now() AND claim_token IS NULL)
    ORDER BY id
    FOR NO KEY UPDATE
)

-- name: queue_digests
-- A coordinator has one open digest. It is left alone if the run of today or tomorrow has queued it, or while it is
-- claimed. A digest with the day of a wrong clock is replaced.
INSERT INTO coordinator_digests AS d (coordinator_id, digest_on)
SELECT id, %(today)s FROM unnest(%(ids)b::uuid[]) AS n (id) ORDER BY id
ON CONFLICT (coordinator_id) WHERE status IN ('pending', 'failed', 'cancelled') DO UPDATE
SET digest_on = excluded.digest_on,
    status = 'pending',
    attempts = CASE d.status WHEN 'cancelled' THEN d.attempts ELSE 0 END,
    next_attempt_at = now(),
    claim_token = NULL,
    queued_at = CASE WHEN d.status = 'cancelled' THEN now() ELSE d.queued_at END,
    maybe_sent = d.maybe_sent OR d.claim_token IS NOT NULL,
    last_error = NULL,
    failure_code = NULL
WHERE (d.status = 'cancelled' OR d.digest_on NOT IN (%(today)s, %(today)s + 1))
    AND NOT (d.claim_token IS NOT NULL AND d.next_attempt_at > now())
