-- A mentor's reminders, earlier cycles too. No delay is longer than a day: what is due beyond that was written by a server
-- whose clock was wrong, and is due now (as lock_due_reminders has it).
SELECT l.threshold_days, l.cert_id, l.expires_on, l.status, l.attempts, l.queued_at, l.sent_at, l.maybe_sent, l.last_error,
    CASE WHEN l.next_attempt_at > now() + interval '25 hours' THEN now() ELSE l.next_attempt_at END AS next_attempt_at,
    l.claim_token IS NOT NULL AND l.next_attempt_at > now() AND l.next_attempt_at <= now() + interval '25 hours'
        AS is_claimed,
    l.history
FROM cert_notification_log AS l
WHERE l.mentor_id = %(mentor_id)s
ORDER BY l.expires_on, l.cert_id, l.threshold_days DESC
