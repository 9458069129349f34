-- name: queue_digests
-- The one open digest of each coordinator (of one organisation, or of all) in whose organisation something may have happened
-- since the last sent one: a pause that certjob opened or lifted, a certificate that has come within 30 days of its end, an
-- alert about the organisation. That is more than enough: read_digest_coordinator and what
-- follows it decide when the digest is written, and cancel it. One a day: none where today's was sent, or the night of the
-- next day has queued already; the day of a wrong clock gives way. What waits keeps the time since when it waits; that it
-- may have arrived stays with it. A digest that is being sent right now is left alone: what it does not report, the next
-- run finds.
WITH reader AS MATERIALIZED (
    SELECT c.id, c.organisation_id,
        CASE
            WHEN last.covers_until <= now() THEN last.covers_until - interval '1 day'
            WHEN last.id IS NOT NULL THEN now() - interval '30 days'
            ELSE least(now(), open.queued_at) - interval '7 days'
        END AS since,
        CASE WHEN last.reported_on <= %(today)s + 1 THEN last.reported_on ELSE %(today)s - 7 END AS reported_on
    FROM coordinators AS c
    LEFT JOIN LATERAL (
        SELECT d.id, d.covers_until, coalesce(d.reported_on, d.digest_on) AS reported_on, d.digest_on
        FROM coordinator_digests AS d
        WHERE d.coordinator_id = c.id AND d.status = 'sent'
        ORDER BY d.sent_number DESC NULLS LAST
        LIMIT 1
    ) AS last ON true
    LEFT JOIN coordinator_digests AS open ON open.coordinator_id = c.id AND open.status IN ('pending', 'failed')
    WHERE (%(organisation_id)s::uuid IS NULL OR c.organisation_id = %(organisation_id)s)
        AND last.digest_on BETWEEN %(today)s AND %(today)s + 1 IS NOT TRUE
), happened (organisation_id, at, expires_on) AS MATERIALIZED (
    -- Looked up once for everybody, by what has happened lately: an organisation may have many coordinators, and there may be
    -- a million mentors to whom nothing has happened.
    SELECT m.organisation_id, p.at, NULL::date
    FROM (
        SELECT mentor_id, paused_at AS at FROM mentor_pauses
        WHERE reason = 'certification_expired' AND paused_at >= (SELECT min(since) FROM reader)
        UNION ALL
        SELECT mentor_id, lifted_at FROM mentor_pauses
        WHERE reason = 'certification_expired' AND lifted_at >= (SELECT min(since) FROM reader)
    ) AS p
    CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = p.mentor_id OFFSET 0) AS m
    UNION
    SELECT m.organisation_id, NULL, c.expires_on
    FROM certificates AS c
    CROSS JOIN LATERAL (
        SELECT o.organisation_id FROM mentors AS o WHERE o.id = c.mentor_id AND o.left_at IS NULL OFFSET 0
    ) AS m
    WHERE c.expires_on > (SELECT min(reported_on) + 30 FROM reader)
        AND c.expires_on BETWEEN %(today)s AND %(today)s + 30
        AND c.revoked_at IS NULL
    UNION
    SELECT m.organisation_id, e.delivered_at, NULL
    FROM portal_sync_events AS e
    CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = e.mentor_id OFFSET 0) AS m
    WHERE e.corrects_portal AND e.status = 'delivered' AND e.delivered_at >= (SELECT min(since) FROM reader)
    UNION
    SELECT organisation_id, 'infinity', NULL
    FROM attention
    WHERE kind NOT IN ('failed_digests', 'waiting_digests') AND (until IS NULL OR until >= %(today)s)
)
INSERT INTO coordinator_digests AS d (coordinator_id, digest_on)
SELECT r.id, %(today)s
FROM reader AS r
WHERE EXISTS (
        SELECT
        FROM happened AS h
        WHERE h.organisation_id = r.organisation_id AND (h.at >= r.since OR h.expires_on > r.reported_on + 30)
    )
ORDER BY r.id
ON CONFLICT (coordinator_id) WHERE status IN ('pending', 'failed', 'cancelled') DO UPDATE
SET digest_on = excluded.digest_on,
    status = 'pending',
    attempts = 0,
    next_attempt_at = now(),
    claim_token = NULL,
    queued_at = CASE WHEN d.status = 'cancelled' THEN now() ELSE d.queued_at END,
    maybe_sent = d.maybe_sent OR d.claim_token IS NOT NULL,
    last_error = NULL,
    failure_code = NULL
WHERE (d.status = 'cancelled' OR d.digest_on NOT IN (%(today)s, %(today)s + 1))
    AND NOT (d.claim_token IS NOT NULL AND d.next_attempt_at > now())
