-- One night as one transaction of set-based statements with the same writes as certjob. It has no locks, guards or
-- chunks, so it shows the lowest cost for a database.

-- The certificates of the due mentors, with the results of the rules.
CREATE TEMPORARY TABLE judged ON COMMIT DROP AS
WITH owned AS (
    SELECT c.id, c.mentor_id, c.kind, c.issued_on, c.expires_on, c.status AS old_status, c.revoked_at IS NOT NULL AS revoked,
        m.left_at IS NOT NULL AS has_left, o.reminder_thresholds AS thresholds, o.optional_kinds,
        (c.expires_on - date '0001-01-01')::bigint * 4000000 + (c.issued_on - date '0001-01-01') AS place
    FROM mentors AS m
    JOIN organisations AS o ON o.id = m.organisation_id
    JOIN certificates AS c ON c.mentor_id = m.id
    WHERE m.review_on <= %(today)s
), placed AS (
    SELECT owned.*,
        max(place) FILTER (WHERE NOT revoked AND issued_on <= %(today)s) OVER (PARTITION BY mentor_id, kind) AS last_place,
        min(issued_on) FILTER (WHERE NOT revoked) OVER (
            PARTITION BY mentor_id, kind ORDER BY place ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
        ) <= expires_on + 1 AS continued
    FROM owned
), judged AS (
    SELECT placed.*,
        CASE
            WHEN revoked THEN 'revoked'
            WHEN issued_on > %(today)s THEN 'upcoming'
            WHEN last_place > place THEN 'renewed'
            WHEN expires_on < %(today)s THEN 'expired'
            WHEN expires_on - %(today)s <= (SELECT max(t) FROM unnest(thresholds) AS t) THEN 'expiring'
            ELSE 'valid'
        END AS new_status
    FROM placed
)
SELECT id, mentor_id, kind, issued_on, expires_on, revoked, old_status, new_status,
    kind = ANY (optional_kinds) AS optional,
    CASE WHEN NOT has_left AND NOT coalesce(continued, false) AND new_status IN ('valid', 'expiring', 'expired') THEN (
        SELECT t FROM (SELECT min(t) AS t FROM unnest(thresholds) AS t WHERE expires_on - %(today)s <= t) AS reached
        WHERE CASE WHEN t >= 0 THEN expires_on >= %(today)s ELSE t - (expires_on - %(today)s) <= 14 END
    ) END AS threshold_days,
    CASE WHEN new_status NOT IN ('revoked', 'renewed') THEN (
        SELECT min(day)
        FROM (
            VALUES (issued_on), (expires_on + 1), (expires_on - (SELECT max(t) FROM unnest(thresholds) AS t))
            UNION ALL
            SELECT expires_on - t FROM unnest(thresholds) AS t WHERE NOT has_left AND NOT coalesce(continued, false)
        ) AS days (day)
        WHERE day > %(today)s
    ) END AS review_on
FROM judged;

ANALYZE judged;

-- The due mentors, with their changes.
CREATE TEMPORARY TABLE decided ON COMMIT DROP AS
WITH kinds AS (
    SELECT mentor_id, kind, min(review_on) AS review_on,
        bool_or(new_status <> 'upcoming') AND NOT bool_or(new_status IN ('valid', 'expiring')) AND NOT bool_or(optional)
            AS lapsed,
        bool_or(new_status <> 'upcoming' AND NOT optional) AS had,
        bool_or(new_status IN ('valid', 'expiring') AND NOT optional) AS in_force,
        (
            SELECT min(upper(span) - 1)
            FROM unnest(
                range_agg(daterange(issued_on, expires_on, '[]')) FILTER (WHERE NOT revoked AND NOT optional)
            ) AS span
            WHERE upper(span) > %(today)s
        ) AS certified_until
    FROM judged
    GROUP BY mentor_id, kind
), states AS (
    SELECT mentor_id, min(review_on) AS review_on, bool_or(lapsed) AS uncertified, bool_or(had) AS had,
        array_agg(kind ORDER BY kind) FILTER (WHERE lapsed) AS lapsed_kinds,
        CASE WHEN bool_or(in_force) AND NOT bool_or(lapsed) THEN min(certified_until) ELSE '0001-01-01' END
            AS certified_until
    FROM kinds
    GROUP BY mentor_id
), seen AS (
    SELECT j.mentor_id, jsonb_agg(DISTINCT certificate.seen ORDER BY certificate.seen) AS certificates
    FROM judged AS j
    CROSS JOIN LATERAL (SELECT (j.expires_on || ' ' || j.kind) COLLATE "C" AS seen) AS certificate
    GROUP BY j.mentor_id
), pauses AS (
    SELECT mentor_id, bool_or(reason = 'certification_expired') AS own, bool_or(reason <> 'certification_expired') AS others
    FROM mentor_pauses
    WHERE lifted_at IS NULL
    GROUP BY mentor_id
)
SELECT m.id AS mentor_id, coalesce(s.review_on, 'infinity') AS review_on,
    m.left_at IS NULL AND coalesce(s.uncertified, false) AND NOT coalesce(p.own, false) AS opens,
    m.left_at IS NULL AND coalesce(p.own, false) AND NOT coalesce(s.uncertified, false) AS lifts,
    coalesce(s.lapsed_kinds, '{}') AS lapsed_kinds, o.portal IS NOT NULL AS has_portal, m.portal_visible,
    coalesce(s.certified_until, '0001-01-01') AS certified_until,
    m.left_at IS NULL AND coalesce(s.certified_until >= %(today)s, false) AND NOT coalesce(p.others, false) AS visible,
    m.left_at IS NULL AND NOT coalesce(s.had, false) AND p.mentor_id IS NULL AS without_certificate,
    coalesce(seen.certificates, '[]') AS seen
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
LEFT JOIN states AS s ON s.mentor_id = m.id
LEFT JOIN seen ON seen.mentor_id = m.id
LEFT JOIN pauses AS p ON p.mentor_id = m.id
WHERE m.review_on <= %(today)s;

ANALYZE decided;

UPDATE certificates AS c
SET status = j.new_status
FROM judged AS j
WHERE c.id = j.id AND j.new_status <> j.old_status;

INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of, run_id)
SELECT id, mentor_id, old_status, new_status, %(today)s, %(run_id)s FROM judged WHERE new_status <> old_status;

-- This comes before the next INSERT, because the statistics do not contain its rows.
UPDATE mentor_pauses AS p
SET lifted_at = now(), lifted_by = 'certjob'
FROM decided AS d
WHERE d.lifts AND p.mentor_id = d.mentor_id AND p.reason = 'certification_expired' AND p.lifted_at IS NULL;

INSERT INTO mentor_pauses (mentor_id, reason, actor, lapsed_kinds)
SELECT mentor_id, 'certification_expired', 'certjob', lapsed_kinds FROM decided WHERE opens;

WITH queued AS (
    INSERT INTO cert_notification_log AS l (mentor_id, threshold_days, cert_id, kind, expires_on, run_id)
    SELECT mentor_id, threshold_days, id, kind, expires_on, %(run_id)s FROM judged WHERE threshold_days IS NOT NULL
    ON CONFLICT (mentor_id, threshold_days, cert_id) DO UPDATE
    SET expires_on = excluded.expires_on,
        kind = excluded.kind,
        status = 'pending',
        attempts = 0,
        next_attempt_at = now(),
        claim_token = NULL,
        queued_at = now(),
        sent_at = NULL,
        last_error = NULL,
        run_id = excluded.run_id,
        history = l.history || jsonb_build_array(jsonb_build_object(
            'expires_on', l.expires_on, 'status', l.status, 'queued_at', l.queued_at, 'sent_at', l.sent_at,
            'attempts', l.attempts, 'maybe_sent', l.maybe_sent OR l.claim_token IS NOT NULL, 'last_error', l.last_error
        ))
    WHERE (l.expires_on <> excluded.expires_on OR l.status IN ('cancelled', 'superseded'))
        AND NOT l.history @> jsonb_build_array(jsonb_build_object('expires_on', excluded.expires_on, 'status', 'sent'))
    RETURNING l.mentor_id, l.threshold_days, l.cert_id
)
UPDATE cert_notification_log AS l
SET status = 'superseded', claim_token = NULL, maybe_sent = l.maybe_sent OR l.claim_token IS NOT NULL
FROM queued AS q
WHERE l.mentor_id = q.mentor_id AND l.cert_id = q.cert_id AND l.threshold_days > q.threshold_days
    AND l.status IN ('pending', 'failed');

INSERT INTO portal_sync_events AS e (mentor_id, visible, wanted_until, run_id)
SELECT mentor_id, visible, CASE WHEN visible THEN least(certified_until, '2099-12-31') END, %(run_id)s
FROM decided
WHERE has_portal AND portal_visible IS DISTINCT FROM visible
ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
SET visible = excluded.visible,
    wanted_until = excluded.wanted_until,
    version = e.version + 1,
    status = 'pending',
    attempts = 0,
    wanted_at = CASE WHEN e.visible = excluded.visible THEN e.wanted_at ELSE now() END,
    last_error = NULL,
    run_id = excluded.run_id;

UPDATE portal_sync_events AS e
SET status = 'withdrawn', version = e.version + 1
FROM decided AS d
WHERE NOT d.has_portal AND e.mentor_id = d.mentor_id AND e.status IN ('pending', 'blocked');

UPDATE mentors AS m
SET review_on = d.review_on,
    certified_until = d.certified_until,
    decided_visible = d.visible,
    without_certificate = d.without_certificate,
    seen_certificates = d.seen,
    reviewed_contact_id = coalesce(m.dynamics_contact_id, m.reviewed_contact_id),
    portal_visible = CASE WHEN d.has_portal THEN d.visible ELSE m.portal_visible END
FROM decided AS d
WHERE m.id = d.mentor_id;

UPDATE job_runs SET finished_at = now(), last_seen_at = now(), outcome = 'ok' WHERE id = %(run_id)s;
