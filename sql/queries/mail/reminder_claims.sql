-- name: lock_due_reminders
-- Untried reminders first, then the oldest, because repeated rejections must not delay the others. If a threshold is reached
-- tomorrow, a run of tomorrow has queued the reminder, and sends it. Mails to a held mentor wait.
WITH untried AS MATERIALIZED (
    SELECT id
    FROM cert_notification_log AS l
    WHERE status = 'pending'
        AND next_attempt_at <= now()
        AND attempts = 0
        AND expires_on - threshold_days <> %(today)s::date + 1
        AND NOT EXISTS (SELECT FROM still_due AS s WHERE s.mentor_id = l.mentor_id AND s.what = 'held')
    ORDER BY next_attempt_at, id
    LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED
), tried AS MATERIALIZED (
    SELECT id
    FROM cert_notification_log AS l
    WHERE status = 'pending'
        AND next_attempt_at <= now()
        AND attempts > 0
        AND expires_on - threshold_days <> %(today)s::date + 1
        AND NOT EXISTS (SELECT FROM still_due AS s WHERE s.mentor_id = l.mentor_id AND s.what = 'held')
    ORDER BY next_attempt_at, id
    LIMIT 1 - (SELECT count(*) FROM untried)
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id FROM untried UNION ALL SELECT id FROM tried

-- name: claim_reminders
-- A row that still has a token was claimed by a process that died, so its mail may have been sent.
UPDATE cert_notification_log AS l
SET claim_token = %(token)s,
    attempts = l.attempts + 1,
    attempted_on = %(today)s,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s),
    maybe_sent = l.maybe_sent OR l.claim_token IS NOT NULL
WHERE l.id = ANY (%(ids)b::bigint[])
RETURNING l.id, l.mentor_id, l.threshold_days, l.expires_on, l.attempts, l.claim_token, l.maybe_sent,
    CASE
        WHEN l.failure_code = 'mail_stopped' THEN EXISTS (
            SELECT FROM cert_notification_log AS s WHERE s.status = 'sent' AND s.sent_at > l.deferred_since
        ) OR EXISTS (
            SELECT FROM coordinator_digests AS s WHERE s.status = 'sent' AND s.sent_at > l.deferred_since
        )
        ELSE false
    END AS accepted_since

-- name: lock_reminded_mentor
-- The lock delays reviews and changes of the mentor. Another process may hold it to write another reminder.
SELECT coalesce(btrim(m.email), '')
FROM mentors AS m
WHERE m.id = (SELECT l.mentor_id FROM cert_notification_log AS l WHERE l.id = %(id)s)
FOR NO KEY UPDATE

-- name: read_reminded_certificate
-- A review may have moved a claimed reminder to a certificate that was entered again. Another reminder may have said the
-- same since this one was queued.
SELECT cert_id, EXISTS (
        SELECT FROM certjob_private.same_mails(mentor_id, cert_id, expires_on, threshold_days)
    ) AS is_mailed
FROM cert_notification_log
WHERE id = %(id)s AND claim_token = %(token)s

-- name: read_recipient
-- The contents of a reminder apart from the facts.
SELECT m.full_name, nullif(btrim(m.email), '') AS email, m.locale, o.name AS organisation_name, o.contact_email,
    o.contact_phone, o.renewal_url, o.sender
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = %(mentor_id)s

-- name: settle_reminders
-- No row is returned or changed if the token does not match, because another process took over after the lease.
UPDATE cert_notification_log AS l
SET status = %(status)s,
    claim_token = NULL,
    attempts = greatest(l.attempts - CASE WHEN %(count_attempt)s THEN 0 ELSE 1 END, 0),
    next_attempt_at = now() + make_interval(secs => %(delay_seconds)s),
    deferred_since = CASE
        WHEN %(code)s IN ('mail_delayed', 'mail_stopped') AND (l.deferred_since >= l.queued_at) IS NOT TRUE THEN now()
        ELSE l.deferred_since
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

-- name: retry_rejected_mails
-- The server has accepted a mail, so it may accept the others. A locked row is tried again within the hour.
WITH reminders AS (
    SELECT id
    FROM cert_notification_log
    WHERE status = 'pending' AND next_attempt_at > now() AND failure_code = 'mail_stopped' AND claim_token IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
), digests AS (
    SELECT id
    FROM coordinator_digests
    WHERE status = 'pending' AND next_attempt_at > now() AND failure_code = 'mail_stopped' AND claim_token IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
), due_digests AS (
    UPDATE coordinator_digests SET next_attempt_at = now() WHERE id IN (SELECT id FROM digests)
)
UPDATE cert_notification_log SET next_attempt_at = now() WHERE id IN (SELECT id FROM reminders)

-- name: review_mentor
-- The next run decides again, because a reminder of a later day was cancelled.
UPDATE mentors SET review_on = '-infinity' WHERE id = %(id)s
