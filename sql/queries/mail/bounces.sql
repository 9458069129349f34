-- name: read_mail_key
SELECT key FROM mail_key

-- name: read_returned_reminder
-- The mentor is locked.
SELECT mentor_id, threshold_days, expires_on FROM cert_notification_log WHERE id = %(id)s

-- name: read_returned_digest
-- The coordinator is locked.
SELECT coordinator_id, digest_on FROM coordinator_digests WHERE id = %(id)s

-- name: bounce_reminder
-- Only a reminder that was sent or may have been sent. lock_reminded_mentor has locked the mentor: an earlier correction
-- of the address makes the report outdated, and a later one reopens the failed row. If the report comes before the settle,
-- the claim is lost. Unless the address is wrong, the reminder is sent again a day later.
UPDATE cert_notification_log AS l
SET status = CASE WHEN %(is_address)s THEN 'failed' ELSE 'pending' END,
    claim_token = NULL,
    next_attempt_at = now() + CASE WHEN %(is_address)s THEN interval '0' ELSE interval '1 day' END,
    deferred_since = CASE WHEN %(is_address)s THEN l.deferred_since ELSE coalesce(l.deferred_since, now()) END,
    last_error = %(error)s,
    failure_code = CASE WHEN %(is_address)s THEN 'wrong_address' ELSE 'mail_delayed' END
WHERE l.id = %(id)s
    AND (l.status = 'sent' OR (l.status = 'pending' AND (l.claim_token IS NOT NULL OR l.maybe_sent)))

-- name: supersede_open_digest
-- A coordinator has one open digest. The returned one replaces it, and later reports the contents of both.
UPDATE coordinator_digests AS o
SET status = 'superseded', claim_token = NULL
FROM coordinator_digests AS d
WHERE d.id = %(id)s
    AND d.status = 'sent'
    AND o.coordinator_id = d.coordinator_id
    AND o.status IN ('pending', 'failed', 'cancelled')

-- name: bounce_digest
-- As bounce_reminder.
UPDATE coordinator_digests
SET status = CASE WHEN %(is_address)s THEN 'failed' ELSE 'pending' END,
    claim_token = NULL,
    next_attempt_at = now() + CASE WHEN %(is_address)s THEN interval '0' ELSE interval '1 day' END,
    deferred_since = CASE WHEN %(is_address)s THEN deferred_since ELSE coalesce(deferred_since, now()) END,
    last_error = %(error)s,
    failure_code = CASE WHEN %(is_address)s THEN 'wrong_address' ELSE 'mail_delayed' END
WHERE id = %(id)s AND (status = 'sent' OR (status = 'pending' AND (claim_token IS NOT NULL OR maybe_sent)))
