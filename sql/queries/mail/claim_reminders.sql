-- What the statement before has locked. A row with an old token was claimed by a process that vanished: its mail may
-- have been sent. The cycle is the number of earlier ones, or that of the earlier one about the same date: what comes back
-- after it was cancelled is the same message.
UPDATE cert_notification_log AS l
SET claim_token = %(token)s,
    attempts = l.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s),
    maybe_sent = l.maybe_sent OR l.claim_token IS NOT NULL
WHERE l.id = ANY (%(ids)b::bigint[])
RETURNING l.id, l.mentor_id, l.threshold_days, l.cert_id, l.expires_on, l.attempts, l.claim_token, l.maybe_sent,
    coalesce(
        (
            SELECT min(earlier.number) - 1
            FROM jsonb_array_elements(l.history) WITH ORDINALITY AS earlier (entry, number)
            WHERE earlier.entry -> 'expires_on' = to_jsonb(l.expires_on)
        ),
        jsonb_array_length(l.history)
    )::int AS cycle
