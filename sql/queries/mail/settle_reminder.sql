-- The same as settle_reminders, for the one that was just sent: it is written before the next one is, so what it costs is
-- paid for every mail, and arrays of one are a third of that.
UPDATE cert_notification_log AS l
SET status = %(status)s,
    claim_token = NULL,
    attempts = greatest(l.attempts - CASE WHEN %(uncount)s THEN 1 ELSE 0 END, 0),
    next_attempt_at = now() + make_interval(secs => %(delay_seconds)s),
    sent_at = CASE WHEN %(status)s = 'sent' THEN now() ELSE l.sent_at END,
    maybe_sent = l.maybe_sent OR %(maybe_sent)s,
    last_error = CASE WHEN %(status)s = 'sent' THEN NULL ELSE coalesce(%(error)s, l.last_error) END
WHERE l.id = %(id)s AND l.claim_token = %(token)s
RETURNING l.id
