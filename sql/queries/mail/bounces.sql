-- name: hold_bounced_mentor
-- The mentor first, then the row, as everybody who locks both. A correction of the address comes before this, and the report
-- is about an address that is no longer theirs, or after it and reopens what failed.
SELECT btrim(m.email)
FROM mentors AS m
WHERE m.id = (SELECT l.mentor_id FROM cert_notification_log AS l WHERE l.id = %(id)s)
FOR NO KEY UPDATE

-- name: bounce_reminder
-- What was sent, or may have been, about the date as it is now. A report can be faster than the settle: then the claim is
-- lost. The cycle is that of claim_reminders.
UPDATE cert_notification_log AS l
SET status = 'failed', claim_token = NULL, next_attempt_at = now(), last_error = %(error)s, failure_code = 'bounced'
WHERE l.id = %(id)s
    AND (l.status = 'sent' OR (l.status = 'pending' AND (l.claim_token IS NOT NULL OR l.maybe_sent)))
    AND %(cycle)s = coalesce(
        (
            SELECT min(earlier.number) - 1
            FROM jsonb_array_elements(l.history) WITH ORDINALITY AS earlier (entry, number)
            WHERE earlier.entry -> 'expires_on' = to_jsonb(l.expires_on)
        ),
        jsonb_array_length(l.history)
    )
RETURNING l.id

-- name: hold_bounced_coordinator
-- As hold_bounced_mentor.
SELECT btrim(c.email) FROM coordinators AS c WHERE c.id = %(coordinator_id)s FOR NO KEY UPDATE

-- name: lock_bounced_digest
-- That of the day, sent or perhaps sent.
SELECT d.id
FROM coordinator_digests AS d
WHERE d.coordinator_id = %(coordinator_id)s
    AND d.digest_on = %(digest_on)s
    AND (d.status = 'sent' OR (d.status = 'pending' AND (d.claim_token IS NOT NULL OR d.maybe_sent)))
ORDER BY d.sent_number DESC NULLS FIRST
LIMIT 1
FOR NO KEY UPDATE

-- name: supersede_open_digest
-- A coordinator has one open digest. That which came back takes its place: once the address is corrected, it reports what
-- both would have.
UPDATE coordinator_digests
SET status = 'superseded', claim_token = NULL
WHERE coordinator_id = %(coordinator_id)s AND id <> %(id)s AND status IN ('pending', 'failed', 'cancelled')

-- name: bounce_digest
-- Open again: failed until the address is corrected.
UPDATE coordinator_digests
SET status = 'failed', claim_token = NULL, next_attempt_at = now(), last_error = %(error)s, failure_code = 'bounced'
WHERE id = %(id)s
