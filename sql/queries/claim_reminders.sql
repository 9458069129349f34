-- What the statement before has locked. A row with an old token was claimed by a process that vanished: its mail may
-- have been sent.
UPDATE cert_notification_log AS l
SET claim_token = %(token)s,
    attempts = l.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s),
    maybe_sent = l.maybe_sent OR l.claim_token IS NOT NULL
WHERE l.id = ANY (%(ids)s::bigint[])
RETURNING l.id, l.mentor_id, l.threshold_days, l.cert_id, l.expires_on, l.attempts, l.claim_token, l.maybe_sent,
    jsonb_array_length(l.history) AS cycle
