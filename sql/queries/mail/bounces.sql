-- name: read_returned_reminder
-- What a reminder is about now; its mentor is held.
SELECT mentor_id, threshold_days, expires_on FROM cert_notification_log WHERE id = %(id)s

-- name: bounce_reminder
-- What was sent, or may have been, about the date as it is now, while hold_reminders has its mentor: a correction of the
-- address comes before this, and the report is about an address that is no longer theirs, or after it and reopens what failed.
-- A report can be faster than the settle: then the claim is lost.
UPDATE cert_notification_log AS l
SET status = 'failed', claim_token = NULL, next_attempt_at = now(), last_error = %(error)s, failure_code = 'wrong_address'
WHERE l.id = %(id)s
    AND (l.status = 'sent' OR (l.status = 'pending' AND (l.claim_token IS NOT NULL OR l.maybe_sent)))

-- name: supersede_open_digest
-- A coordinator has one open digest. That which came back takes its place: once the address is corrected, it reports what
-- both would have.
UPDATE coordinator_digests AS o
SET status = 'superseded', claim_token = NULL
FROM coordinator_digests AS d
WHERE d.id = %(id)s
    AND d.status = 'sent'
    AND o.coordinator_id = d.coordinator_id
    AND o.status IN ('pending', 'failed', 'cancelled')

-- name: bounce_digest
-- Open again: failed until the address is corrected. As bounce_reminder.
UPDATE coordinator_digests
SET status = 'failed', claim_token = NULL, next_attempt_at = now(), last_error = %(error)s, failure_code = 'wrong_address'
WHERE id = %(id)s AND (status = 'sent' OR (status = 'pending' AND (claim_token IS NOT NULL OR maybe_sent)))
