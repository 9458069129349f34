-- name: lock_due_digests
-- Untried digests first, then the oldest. Digests of a later day are left to the run of that day.
SELECT id
FROM coordinator_digests
WHERE status = 'pending'
    AND digest_on <= %(today)s
    AND next_attempt_at <= now()
ORDER BY attempts, next_attempt_at, id
LIMIT 1
FOR NO KEY UPDATE SKIP LOCKED

-- name: claim_digests
-- A row that still has a token was claimed by a process that died, so its mail may have been sent.
UPDATE coordinator_digests AS d
SET claim_token = %(token)s,
    attempts = d.attempts + 1,
    next_attempt_at = now() + make_interval(secs => %(lease_seconds)s),
    maybe_sent = d.maybe_sent OR d.claim_token IS NOT NULL
WHERE d.id = ANY (%(ids)s::bigint[])
RETURNING d.id, d.attempts, d.claim_token, d.maybe_sent, d.coordinator_id, d.digest_on,
    CASE
        WHEN d.failure_code = 'mail_stopped' THEN EXISTS (
            SELECT FROM cert_notification_log AS s WHERE s.status = 'sent' AND s.sent_at > d.deferred_since
        ) OR EXISTS (
            SELECT FROM coordinator_digests AS s WHERE s.status = 'sent' AND s.sent_at > d.deferred_since
        )
        ELSE false
    END AS accepted_since

-- name: lock_digest_and_coordinator
-- The lock on the coordinator delays a correction of the address; the lock on the row delays a run that queues it again.
SELECT btrim(c.email)
FROM coordinator_digests AS d
JOIN coordinators AS c ON c.id = d.coordinator_id
WHERE d.id = %(id)s
FOR NO KEY UPDATE OF c, d

-- name: read_digest_coordinators
-- One coordinator, or all with this address, with the keys of the last sent digest. The day of a digest from the future, due
-- to a wrong clock, is ignored.
SELECT c.id, c.organisation_id, o.slug AS organisation_slug, o.name AS organisation_name, o.sender, c.full_name, c.email,
    c.locale, o.contact_email, o.portal IS NOT NULL AS has_portal, coalesce(last.reported, '{}') AS reported,
    CASE WHEN last.digest_on <= %(today)s + 1 THEN last.digest_on END AS last_digest_on
FROM coordinators AS c
JOIN organisations AS o ON o.id = c.organisation_id
LEFT JOIN LATERAL (
    SELECT s.digest_on, s.reported
    FROM coordinator_digests AS s
    WHERE s.coordinator_id = c.id AND s.status = 'sent'
    ORDER BY s.sent_number DESC NULLS LAST
    LIMIT 1
) AS last ON true
WHERE (%(id)s::uuid IS NULL OR c.id = %(id)s)
    AND (%(email)s::text IS NULL OR lower(btrim(c.email)) = lower(btrim(%(email)s)))
    AND (%(slug)s::text IS NULL OR o.slug = %(slug)s)
ORDER BY o.slug

-- name: note_reported
-- No keys are stored if another process has claimed the digest.
UPDATE coordinator_digests SET reported = %(keys)s WHERE id = %(id)s AND claim_token = %(token)s

-- name: settle_digests
-- No row is returned or changed if the token does not match, because another process took over after the lease.
-- sent_number is the order of sending, also with a wrong clock.
UPDATE coordinator_digests AS d
SET status = %(status)s,
    claim_token = NULL,
    attempts = greatest(d.attempts - CASE WHEN %(count_attempt)s THEN 0 ELSE 1 END, 0),
    next_attempt_at = now() + make_interval(secs => %(delay_seconds)s),
    deferred_since = CASE
        WHEN %(code)s IN ('mail_delayed', 'mail_stopped') AND (d.deferred_since >= d.queued_at) IS NOT TRUE THEN now()
        ELSE d.deferred_since
    END,
    sent_at = CASE WHEN %(status)s = 'sent' THEN now() ELSE d.sent_at END,
    sent_number = CASE
        WHEN %(status)s = 'sent' THEN 1 + coalesce(
            (
                SELECT max(o.sent_number)
                FROM coordinator_digests AS o
                WHERE o.coordinator_id = d.coordinator_id AND o.status = 'sent'
            ),
            0
        )
        ELSE d.sent_number
    END,
    maybe_sent = d.maybe_sent OR %(maybe_sent)s,
    last_error = CASE WHEN %(status)s = 'sent' THEN NULL ELSE coalesce(%(error)s, d.last_error) END,
    failure_code = CASE
        WHEN %(status)s = 'sent' THEN NULL
        WHEN %(error)s::text IS NULL THEN d.failure_code
        ELSE %(code)s
    END
WHERE d.id = %(id)s AND d.claim_token = %(token)s
RETURNING true AS unchanged
