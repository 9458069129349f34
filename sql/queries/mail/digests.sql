-- name: queue_digests
-- One digest a day for each coordinator (of one organisation, or of all) to whom something is to be told that the last sent
-- one has not told: a pause that certjob opened or lifted, a push that waits, a reminder that could not be delivered, a
-- certificate that has come within 30 days of its end. What still waits a week later is told again. The lines are those
-- of read_paused_mentors, read_returned_mentors, read_pending_pushes and read_undelivered_reminders. A day on which there
-- was nothing to tell, or whose digest gave way to one of a wrong, later day, may have something now. Not when the night of
-- the next day has begun already: its digest tells everything.
WITH reader AS MATERIALIZED (
    SELECT c.id, c.organisation_id, last.lines,
        CASE
            WHEN last.covers_until <= now() THEN last.covers_until - interval '1 day'
            WHEN last.id IS NOT NULL THEN now() - interval '30 days'
            ELSE least(now(), first.queued_at) - interval '7 days'
        END AS since,
        CASE WHEN last.told_on <= %(today)s + 1 THEN last.told_on ELSE %(today)s - 7 END AS told_on
    FROM coordinators AS c
    LEFT JOIN LATERAL (
        SELECT d.id, d.covers_until, coalesce(d.told_on, d.digest_on) AS told_on, d.told AS lines
        FROM coordinator_digests AS d
        WHERE d.coordinator_id = c.id AND d.status = 'sent'
        ORDER BY d.sent_number DESC NULLS LAST
        LIMIT 1
    ) AS last ON true
    LEFT JOIN LATERAL (
        SELECT min(d.queued_at) AS queued_at
        FROM coordinator_digests AS d
        WHERE d.coordinator_id = c.id AND d.status <> 'cancelled'
    ) AS first ON last.id IS NULL
    WHERE (%(organisation_id)s::uuid IS NULL OR c.organisation_id = %(organisation_id)s)
        AND NOT EXISTS (
            SELECT
            FROM coordinator_digests AS d
            WHERE d.coordinator_id = c.id
                AND d.digest_on = %(today)s + 1
                AND d.status IN ('pending', 'sent', 'failed')
        )
), told AS MATERIALIZED (
    SELECT r.id, t.line FROM reader AS r CROSS JOIN LATERAL unnest(r.lines) AS t (line)
), opened AS MATERIALIZED (
    -- These four are looked up once for everybody, by what has happened lately: an organisation may have many coordinators,
    -- and there may be a million mentors to whom nothing has happened.
    SELECT p.id, p.paused_at, m.organisation_id
    FROM mentor_pauses AS p
    CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = p.mentor_id OFFSET 0) AS m
    WHERE p.reason = 'certification_expired'
        AND p.paused_at >= (SELECT min(r.since) FROM reader AS r)
        AND p.lifted_at IS NULL
), lifted AS MATERIALIZED (
    SELECT p.id, p.lifted_at, m.organisation_id
    FROM (
        SELECT DISTINCT ON (e.mentor_id) e.id, e.mentor_id, e.lifted_at
        FROM mentor_pauses AS e
        WHERE e.reason = 'certification_expired'
            AND e.lifted_at >= (SELECT min(r.since) FROM reader AS r)
            AND e.lifted_by = 'certjob'
        ORDER BY e.mentor_id, e.lifted_at DESC, e.id
    ) AS p
    CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = p.mentor_id OFFSET 0) AS m
    WHERE NOT EXISTS (
        SELECT FROM mentor_pauses AS o
        WHERE o.mentor_id = p.mentor_id AND o.reason = 'certification_expired' AND o.lifted_at IS NULL
        OFFSET 0
    )
), undelivered AS MATERIALIZED (
    SELECT m.organisation_id,
        CASE WHEN l.failure_code = 'no_address' THEN 'noaddress:' || l.mentor_id
            WHEN l.status = 'pending' THEN 'late:' || l.id
            ELSE 'mail:' || l.id || ':' || extract(epoch FROM l.next_attempt_at) END AS line
    FROM cert_notification_log AS l
    CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = l.mentor_id OFFSET 0) AS m
    WHERE (
            l.status = 'failed'
            OR (l.status = 'pending' AND l.attempts >= 3 AND l.queued_at < now() - interval '1 day')
        )
        AND greatest(l.expires_on - l.threshold_days, l.queued_at::date) + 14 >= %(today)s
), soon AS MATERIALIZED (
    -- Of each organisation the last day that is near by now, of a certificate that nothing continues.
    SELECT m.organisation_id, max(c.expires_on) AS expires_on
    FROM certificates AS c
    CROSS JOIN LATERAL (
        SELECT o.organisation_id FROM mentors AS o WHERE o.id = c.mentor_id AND o.left_at IS NULL OFFSET 0
    ) AS m
    WHERE c.expires_on > (SELECT min(r.told_on) + 30 FROM reader AS r)
        AND c.expires_on BETWEEN %(today)s AND %(today)s + 30
        AND c.issued_on <= %(today)s
        AND c.revoked_at IS NULL
        AND NOT EXISTS (
            SELECT
            FROM certificates AS o
            WHERE o.mentor_id = c.mentor_id
                AND o.kind = c.kind
                AND o.revoked_at IS NULL
                AND (o.expires_on, o.issued_on) > (c.expires_on, c.issued_on)
                AND o.issued_on <= c.expires_on + 1
            OFFSET 0
        )
    GROUP BY m.organisation_id
), found (id, line, stands) AS (
    SELECT r.id, 'paused:' || p.id, false
    FROM reader AS r
    JOIN opened AS p ON p.organisation_id = r.organisation_id AND p.paused_at >= r.since
    UNION ALL
    SELECT r.id, 'back:' || p.id, false
    FROM reader AS r
    JOIN lifted AS p ON p.organisation_id = r.organisation_id AND p.lifted_at >= r.since
    UNION ALL
    SELECT r.id, 'push:' || a.event_id || ':' || a.visible::text, true
    FROM reader AS r
    JOIN portal_alerts AS a ON a.organisation_id = r.organisation_id
    UNION ALL
    SELECT r.id, u.line, true
    FROM reader AS r
    JOIN undelivered AS u ON u.organisation_id = r.organisation_id
), news AS (
    SELECT f.id
    FROM found AS f
    LEFT JOIN told AS t ON t.id = f.id AND t.line = f.line
    WHERE t.id IS NULL
    UNION ALL
    SELECT r.id FROM reader AS r WHERE r.told_on + 7 <= %(today)s AND EXISTS (SELECT FROM found AS f WHERE f.id = r.id AND f.stands)
    UNION ALL
    SELECT r.id
    FROM reader AS r
    JOIN soon AS s ON s.organisation_id = r.organisation_id AND s.expires_on > r.told_on + 30
)
INSERT INTO coordinator_digests AS d (coordinator_id, digest_on)
SELECT DISTINCT n.id, %(today)s FROM news AS n ORDER BY n.id
ON CONFLICT (coordinator_id, digest_on) DO UPDATE
SET status = 'pending',
    attempts = 0,
    next_attempt_at = now(),
    claim_token = NULL,
    queued_at = now(),
    last_error = NULL,
    failure_code = NULL
WHERE d.status IN ('cancelled', 'superseded')

-- name: supersede_digests
-- What an unsent digest would tell, the newest one tells too, or has told: of each coordinator only that one stays open. One
-- that may have arrived hands this on, so that the newest says that it may be a repeat. A day beyond tomorrow was
-- written on a wrong clock and gives way to a real one. What is being sent just now is left alone until it is settled.
WITH old AS MATERIALIZED (
    SELECT d.id, newest.id AS newest_id, d.maybe_sent OR d.claim_token IS NOT NULL AS maybe_sent
    FROM coordinator_digests AS d
    JOIN LATERAL (
        SELECT n.id
        FROM coordinator_digests AS n
        WHERE n.coordinator_id = d.coordinator_id
            AND n.status IN ('pending', 'sent')
            AND n.digest_on <= %(today)s + 1
            AND (n.digest_on > d.digest_on OR d.digest_on > %(today)s + 1)
        ORDER BY n.digest_on DESC
        LIMIT 1
    ) AS newest ON true
    WHERE d.status IN ('pending', 'failed')
        AND NOT (d.claim_token IS NOT NULL AND d.next_attempt_at > now())
    ORDER BY d.id
    FOR NO KEY UPDATE OF d
), handed_on AS (
    UPDATE coordinator_digests AS n
    SET maybe_sent = true
    FROM old
    WHERE n.id = old.newest_id AND old.maybe_sent AND n.status = 'pending'
)
UPDATE coordinator_digests AS d
SET status = 'superseded', claim_token = NULL, maybe_sent = old.maybe_sent
FROM old
WHERE d.id = old.id
