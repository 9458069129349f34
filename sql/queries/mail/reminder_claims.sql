-- name: lock_due_reminders
-- Untried before retried, oldest first: what a server keeps refusing must not hold up the others for ever. What the
-- night of the day after has queued is left to that day.
WITH untried AS MATERIALIZED (
    SELECT id
    FROM cert_notification_log
    WHERE status = 'pending'
        AND next_attempt_at <= now()
        AND attempts = 0
        AND expires_on - threshold_days <> %(today)s::date + 1
    ORDER BY next_attempt_at, id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED
), tried AS MATERIALIZED (
    SELECT id
    FROM cert_notification_log
    WHERE status = 'pending'
        AND next_attempt_at <= now()
        AND attempts > 0
        AND expires_on - threshold_days <> %(today)s::date + 1
    ORDER BY next_attempt_at, id
    LIMIT 1 - (SELECT count(*) FROM untried)
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id FROM untried UNION ALL SELECT id FROM tried

-- name: claim_reminders
-- What the statement before has locked. A row with an old token was claimed by a process that vanished: its mail may
-- have been sent.
UPDATE cert_notification_log AS l
SET claim_token = %(token)s,
    attempts = l.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s),
    maybe_sent = l.maybe_sent OR l.claim_token IS NOT NULL
WHERE l.id = ANY (%(ids)b::bigint[])
RETURNING l.id, l.mentor_id, l.threshold_days, l.expires_on, l.attempts, l.claim_token, l.maybe_sent

-- name: hold_reminders
-- While the mentor is held nobody reviews them or changes their facts. It waits for a moment (queue.py): another process may
-- be writing another reminder of theirs. No row = gone.
SELECT coalesce(btrim(m.email), '')
FROM mentors AS m
WHERE m.id = (SELECT l.mentor_id FROM cert_notification_log AS l WHERE l.id = %(id)s)
FOR NO KEY UPDATE

-- name: read_reminded_certificate
-- Which certificate a claimed reminder is about by now: a review gives the row to one that was entered anew.
SELECT cert_id FROM cert_notification_log WHERE id = %(id)s AND claim_token = %(token)s

-- name: read_recipient
-- What a message says beside the facts: the name, the address and the organisation's words.
SELECT m.full_name, nullif(btrim(m.email), '') AS email, m.locale, o.name AS organisation_name, o.contact_email,
    o.contact_phone, o.renewal_url, o.sender
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = %(mentor_id)s

-- name: settle_reminders
-- No row back: the token is gone, somebody else took the reminder over after the lease; nothing is written.
UPDATE cert_notification_log AS l
SET status = %(status)s,
    claim_token = NULL,
    attempts = greatest(l.attempts - CASE WHEN %(count_attempt)s THEN 0 ELSE 1 END, 0),
    next_attempt_at = now() + make_interval(secs => %(delay_seconds)s),
    deferred_since = CASE
        WHEN %(code)s::text IS DISTINCT FROM 'mail_delayed' OR l.deferred_since >= l.queued_at THEN l.deferred_since
        ELSE now()
    END,
    sent_at = CASE WHEN %(status)s = 'sent' THEN now() ELSE l.sent_at END,
    maybe_sent = l.maybe_sent OR %(maybe_sent)s,
    last_error = CASE WHEN %(status)s = 'sent' THEN NULL ELSE coalesce(%(error)s, l.last_error) END,
    failure_code = CASE
        WHEN %(status)s = 'sent' THEN NULL
        WHEN %(error)s::text IS NULL THEN l.failure_code
        ELSE %(code)s
    END
WHERE l.id = %(id)s AND l.claim_token = %(token)s
RETURNING true AS unchanged

-- name: reopen_refused_reminders
-- Five refusals in a row are the server's fault rather than five recipients': they go back to pending, behind the others.
UPDATE cert_notification_log
SET status = 'pending', next_attempt_at = now() + make_interval(secs => %(delay_seconds)s)
WHERE id = %(id)s AND status = 'failed'

-- name: review_mentor
-- A reminder of a later day was cancelled: the next night asks the rules of its own day.
UPDATE mentors SET review_on = '-infinity' WHERE id = %(id)s
