-- name: reopen_digests
-- Undelivered digests.
UPDATE coordinator_digests
SET status = 'pending', attempts = 0, next_attempt_at = now()
WHERE id IN (
    SELECT id
    FROM coordinator_digests
    WHERE status = 'failed' OR (status = 'pending' AND next_attempt_at > now() AND claim_token IS NULL)
    ORDER BY id
    FOR NO KEY UPDATE
)

-- name: queue_digests
-- Queue a digest for each coordinator (of one organisation, or of all) who may have news since the last sent one: certjob
-- opened or lifted a pause, or corrected the portal, a certificate came within 30 days of its end, or an alert is open. A digest that turns out to
-- have no news is cancelled later, after read_digest. A coordinator has one open digest and gets one a day. It is left
-- alone if it was sent today, if the run of tomorrow has queued it, or while it is claimed. A digest with the day of a wrong
-- clock is replaced.
WITH reader AS MATERIALIZED (
    SELECT c.id, c.organisation_id, CASE WHEN last.digest_on <= %(today)s + 1 THEN last.digest_on END AS last_digest_on
    FROM coordinators AS c
    LEFT JOIN LATERAL (
        SELECT d.digest_on
        FROM coordinator_digests AS d
        WHERE d.coordinator_id = c.id AND d.status = 'sent'
        ORDER BY d.sent_number DESC NULLS LAST
        LIMIT 1
    ) AS last ON true
    WHERE (%(organisation_id)s::uuid IS NULL OR c.organisation_id = %(organisation_id)s)
        AND last.digest_on BETWEEN %(today)s AND %(today)s + 1 IS NOT TRUE
), read_from AS MATERIALIZED (
    SELECT r.id, r.organisation_id, coalesce(r.last_digest_on - %(overlap_days)s, %(today)s - %(first_digest_days)s) AS since,
        coalesce(r.last_digest_on - %(overlap_days)s + %(within_days)s, %(today)s - 1) AS expiring_after
    FROM reader AS r
), happened (organisation_id, at, expires_on) AS MATERIALIZED (
    -- Recent events are read once for all coordinators. The organisation of each is looked up, because nearly all mentors
    -- have none.
    SELECT m.organisation_id, p.at, NULL::date
    FROM (
        SELECT mentor_id, paused_at AS at FROM mentor_pauses
        WHERE reason = 'certification_expired' AND paused_at >= (SELECT min(since) FROM read_from)
        UNION ALL
        SELECT mentor_id, lifted_at FROM mentor_pauses
        WHERE reason = 'certification_expired' AND lifted_at >= (SELECT min(since) FROM read_from)
    ) AS p
    CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = p.mentor_id OFFSET 0) AS m
    UNION
    SELECT m.organisation_id, r.started_at, NULL
    FROM job_runs AS r
    CROSS JOIN LATERAL jsonb_each(r.counts -> 'corrected') AS corrected (what, ids)
    CROSS JOIN LATERAL jsonb_array_elements_text(corrected.ids) AS listed (id)
    CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = listed.id::uuid OFFSET 0) AS m
    WHERE r.command = 'reconcile' AND r.started_at >= (SELECT min(since) FROM read_from)
    UNION
    SELECT m.organisation_id, NULL, c.expires_on
    FROM certificates AS c
    CROSS JOIN LATERAL (
        SELECT o.organisation_id FROM mentors AS o WHERE o.id = c.mentor_id AND o.left_at IS NULL OFFSET 0
    ) AS m
    WHERE c.expires_on > (SELECT min(expiring_after) FROM read_from)
        AND c.expires_on BETWEEN %(today)s AND %(today)s + %(within_days)s
        AND c.revoked_at IS NULL
    UNION
    SELECT o.id, 'infinity', NULL
    FROM current_alerts(%(today)s) AS a
    JOIN organisations AS o ON o.id = a.organisation_id OR a.kind = 'no_full_run' OR a.cause = 'not_copied'
        OR (a.kind = 'unknown_contacts' AND o.portal IS NOT NULL)
    WHERE a.kind NOT IN ('failed_digests', 'waiting_digests') AND NOT a.is_acknowledged
)
INSERT INTO coordinator_digests AS d (coordinator_id, digest_on)
SELECT r.id, %(today)s
FROM read_from AS r
WHERE EXISTS (
        SELECT
        FROM happened AS h
        WHERE h.organisation_id = r.organisation_id AND (h.at >= r.since OR h.expires_on > r.expiring_after)
    )
ORDER BY r.id
ON CONFLICT (coordinator_id) WHERE status IN ('pending', 'failed', 'cancelled') DO UPDATE
SET digest_on = excluded.digest_on,
    status = 'pending',
    attempts = CASE d.status WHEN 'cancelled' THEN d.attempts ELSE 0 END,
    next_attempt_at = now(),
    claim_token = NULL,
    queued_at = CASE WHEN d.status = 'cancelled' THEN now() ELSE d.queued_at END,
    maybe_sent = d.maybe_sent OR d.claim_token IS NOT NULL,
    last_error = NULL,
    failure_code = NULL
WHERE (d.status = 'cancelled' OR d.digest_on NOT IN (%(today)s, %(today)s + 1))
    AND NOT (d.claim_token IS NOT NULL AND d.next_attempt_at > now())
