-- One night of the rules as set-based statements, in one transaction and with the same writes as certjob. It has no guards and
-- no chunks. Its isolation replaces the locks: if a fact changes meanwhile, the update of the mentor fails.

-- The certificates of the due mentors.
CREATE TEMP TABLE judged ON COMMIT DROP AS
SELECT c.mentor_id, c.id, c.kind, c.issued_on, c.expires_on, c.revoked_at, c.old_status, c.counts, c.status,
    CASE WHEN c.status NOT IN ('revoked', 'renewed') THEN (
        SELECT min(day)
        FROM unnest(ARRAY[c.issued_on, c.expires_on + 1, c.expires_on - c.first_threshold]
            || array(SELECT c.expires_on - t FROM unnest(c.reminded_thresholds) AS t)) AS day
        WHERE day > %(today)s
    ) END AS next_on,
    CASE WHEN c.status IN ('expiring', 'expired') THEN (
        SELECT min(t) FROM unnest(c.reminded_thresholds) AS t WHERE t >= c.expires_on - %(today)s
    ) END AS threshold
FROM (
    SELECT o.*, CASE WHEN NOT o.has_left AND o.next_issued_on > o.expires_on + 1 THEN o.reminder_thresholds END
            AS reminded_thresholds,
        CASE
            WHEN o.revoked_at IS NOT NULL THEN 'revoked'
            WHEN o.issued_on > %(today)s THEN 'upcoming'
            WHEN o.place > 1 THEN 'renewed'
            WHEN o.expires_on < %(today)s THEN 'expired'
            WHEN o.expires_on - o.first_threshold <= %(today)s THEN 'expiring'
            ELSE 'valid'
        END AS status
    FROM (
        SELECT c.id, c.mentor_id, c.kind, c.issued_on, c.expires_on, c.revoked_at, c.status AS old_status,
            m.left_at IS NOT NULL AS has_left, o.reminder_thresholds, o.first_threshold,
            c.kind <> ALL (o.optional_kinds) AS counts,
            row_number() OVER (
                PARTITION BY c.mentor_id, c.kind, c.revoked_at IS NULL AND c.issued_on <= %(today)s
                ORDER BY c.expires_on DESC, c.issued_on DESC
            ) AS place,
            coalesce(min(c.issued_on) FILTER (WHERE c.revoked_at IS NULL) OVER (
                PARTITION BY c.mentor_id, c.kind ORDER BY c.expires_on DESC, c.issued_on DESC
                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), 'infinity') AS next_issued_on
        FROM mentors AS m
        JOIN (
            SELECT o.id, o.reminder_thresholds, o.optional_kinds, max(t) AS first_threshold
            FROM organisations AS o LEFT JOIN unnest(o.reminder_thresholds) AS t ON true GROUP BY o.id
        ) AS o ON o.id = m.organisation_id
        JOIN certificates AS c ON c.mentor_id = m.id
        WHERE m.review_on <= %(today)s
    ) AS o
) AS c;
ANALYZE judged;

-- The due mentors.
CREATE TEMP TABLE decided ON COMMIT DROP AS
SELECT d.id, d.lapsed, d.seen, d.review_on, d.never_had, d.opens, d.pause_id,
    CASE WHEN d.is_certified THEN d.certified_until ELSE '0001-01-01' END AS certified_until,
    d.is_certified AND NOT d.is_paused AND NOT d.has_left AS visible,
    d.has_portal AND (d.portal_visible IS DISTINCT FROM (d.is_certified AND NOT d.is_paused AND NOT d.has_left)
        OR d.portal_visible AND d.old_until IS DISTINCT FROM d.certified_until) AS push
FROM (
    SELECT m.id, CASE WHEN m.left_at IS NULL THEN k.lapsed END AS lapsed, seen.certificates AS seen, coalesce(k.review_on, 'infinity') AS review_on, k.certified_until,
        m.left_at IS NOT NULL AS has_left, o.portal IS NOT NULL AS has_portal, m.portal_visible,
        m.certified_until AS old_until,
        m.left_at IS NULL AND k.had IS NULL AS never_had,
        coalesce(k.had AND k.lapsed IS NULL, false) AS is_certified,
        m.left_at IS NULL AND k.lapsed IS NOT NULL AND p.id IS NULL AS opens,
        -- The own pause to lift.
        CASE WHEN m.left_at IS NULL AND k.lapsed IS NULL AND p.lapsed_kinds <@ (k.in_force || o.optional_kinds)
            THEN p.id END AS pause_id,
        EXISTS (SELECT FROM mentor_pauses AS x WHERE x.mentor_id = m.id AND x.lifted_at IS NULL AND x.actor <> 'certjob')
            OR m.left_at IS NULL AND k.lapsed IS NOT NULL
            OR p.id IS NOT NULL AND NOT (p.lapsed_kinds <@ (k.in_force || o.optional_kinds)) AS is_paused
    FROM mentors AS m
    JOIN organisations AS o ON o.id = m.organisation_id
    LEFT JOIN (
        SELECT k.mentor_id, min(k.next_on) AS review_on,
            min(k.until) FILTER (WHERE k.counts) AS certified_until,
            bool_or(true) FILTER (WHERE k.counts AND k.had) AS had,
            array_agg(k.kind ORDER BY k.kind COLLATE "C") FILTER (WHERE k.counts AND k.had AND NOT k.in_force) AS lapsed,
            coalesce(array_agg(k.kind) FILTER (WHERE k.in_force), '{}') AS in_force
        FROM (
            SELECT j.mentor_id, j.kind, bool_or(j.counts) AS counts, min(j.next_on) AS next_on,
                bool_or(j.status <> 'upcoming') AS had,
                bool_or(j.status IN ('valid', 'expiring')) AS in_force,
                (
                    SELECT min(upper(period)) FROM unnest(range_agg(daterange(j.issued_on, j.expires_on, '[]'))
                        FILTER (WHERE j.revoked_at IS NULL)) AS period
                    WHERE upper(period) > %(today)s
                ) - 1 AS until
            FROM judged AS j
            GROUP BY j.mentor_id, j.kind
        ) AS k
        GROUP BY k.mentor_id
    ) AS k ON k.mentor_id = m.id
    LEFT JOIN (
        SELECT j.mentor_id, jsonb_agg(DISTINCT (j.expires_on || ' ' || j.kind) COLLATE "C") AS certificates
        FROM judged AS j
        GROUP BY j.mentor_id
    ) AS seen ON seen.mentor_id = m.id
    LEFT JOIN mentor_pauses AS p ON p.mentor_id = m.id AND p.lifted_at IS NULL AND p.reason = 'certification_expired'
    WHERE m.review_on <= %(today)s
) AS d;
ANALYZE decided;

WITH changed AS (
    UPDATE certificates AS c SET status = j.status FROM judged AS j WHERE c.id = j.id AND j.old_status <> j.status
    RETURNING c.id, c.mentor_id, j.old_status, j.status
)
INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of, run_id)
SELECT id, mentor_id, old_status, status, %(today)s, %(run_id)s FROM changed;

UPDATE mentor_pauses AS p SET lifted_at = now(), lifted_by = 'certjob' FROM decided AS d WHERE p.id = d.pause_id;

UPDATE mentor_pauses AS p
SET lapsed_kinds = ARRAY(SELECT DISTINCT kind COLLATE "C" FROM unnest(p.lapsed_kinds || d.lapsed) AS kind ORDER BY 1)
FROM decided AS d
WHERE NOT d.opens AND p.mentor_id = d.id AND p.reason = 'certification_expired' AND p.lifted_at IS NULL
    AND NOT d.lapsed <@ p.lapsed_kinds;

INSERT INTO mentor_pauses (mentor_id, reason, actor, lapsed_kinds)
SELECT id, 'certification_expired', 'certjob', lapsed FROM decided WHERE opens;

INSERT INTO portal_sync_events AS e (mentor_id, visible, wanted_until, sure_until, shown_until, run_id)
SELECT d.id, d.visible, CASE WHEN d.visible THEN least(d.certified_until, '2099-12-31') END,
    coalesce(CASE WHEN m.portal_visible THEN last.sure_until END, '0001-01-01'), coalesce(last.shown_until, 'infinity'), %(run_id)s
FROM decided AS d
JOIN mentors AS m ON m.id = d.id
LEFT JOIN (
    SELECT DISTINCT ON (p.mentor_id, p.claim_contact_id) p.mentor_id, p.claim_contact_id, p.sure_until, p.shown_until
    FROM portal_sync_events AS p
    ORDER BY p.mentor_id, p.claim_contact_id, p.id DESC
) AS last ON last.mentor_id = m.id AND last.claim_contact_id = m.dynamics_contact_id
WHERE d.push
ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
SET visible = excluded.visible, wanted_until = excluded.wanted_until, version = e.version + 1, status = 'pending',
    attempts = 0, wanted_at = now(), next_attempt_at = greatest(now(), e.next_attempt_at);

INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, kind, expires_on, run_id)
SELECT j.mentor_id, j.threshold, j.id, j.kind, j.expires_on, %(run_id)s
FROM judged AS j
WHERE CASE WHEN j.threshold < 0 THEN j.threshold - (j.expires_on - %(today)s) <= 14 ELSE j.expires_on >= %(today)s END
    AND j.threshold IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM cert_notification_log AS l
        WHERE l.mentor_id = j.mentor_id AND (l.cert_id = j.id OR l.kind = j.kind) AND l.expires_on = j.expires_on
            AND l.status = 'sent' AND (l.threshold_days = j.threshold OR l.attempted_on >= j.expires_on - j.threshold)
    )
ORDER BY j.mentor_id  -- reads the log before it adds rows
ON CONFLICT (mentor_id, threshold_days, cert_id) DO NOTHING;

UPDATE mentors AS m
SET certified_until = d.certified_until, decided_visible = d.visible, without_certificate = d.never_had,
    seen_certificates = coalesce(d.seen, m.seen_certificates), review_on = d.review_on,
    reviewed_contact_id = coalesce(m.dynamics_contact_id, m.reviewed_contact_id),
    portal_visible = CASE WHEN d.push THEN d.visible ELSE m.portal_visible END
FROM decided AS d
WHERE m.id = d.id;
