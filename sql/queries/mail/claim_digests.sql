-- What the statement before has locked. A row with an old token was claimed by a process that vanished: its mail may
-- have been sent.
UPDATE coordinator_digests AS d
SET claim_token = %(token)s,
    attempts = d.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s),
    maybe_sent = d.maybe_sent OR d.claim_token IS NOT NULL
WHERE d.id = ANY (%(ids)s::bigint[])
RETURNING d.id, d.coordinator_id, d.digest_on, d.attempts, d.claim_token, d.maybe_sent
