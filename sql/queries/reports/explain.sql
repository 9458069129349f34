-- name: read_explained_mentor
-- review_on is infinite if the review is due now, or never. The app can write times that Python cannot hold, such as
-- infinity; they become the nearest one that it can.
SELECT m.id, m.member_no, m.full_name, nullif(btrim(m.email), '') AS email, m.dynamics_contact_id,
    CASE WHEN m.left_at IS NOT NULL THEN greatest('0002-01-01', least(m.left_at, '9998-12-31')) END AS left_at,
    o.slug AS organisation, o.name AS organisation_name,
    m.review_on <= %(today)s AS review_is_due,
    CASE WHEN isfinite(m.review_on) THEN m.review_on END AS review_on
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = %(mentor_id)s

-- name: read_explained_certificates
-- stored_on is the date of the review that stored the status. Times: see read_explained_mentor.
SELECT c.id, c.kind, c.issued_on, c.expires_on, c.status AS stored_status,
    CASE WHEN c.revoked_at IS NOT NULL THEN greatest('0002-01-01', least(c.revoked_at, '9998-12-31')) END AS revoked_at,
    (
        SELECT t.as_of
        FROM certificate_transitions AS t
        WHERE t.mentor_id = c.mentor_id AND t.certificate_id = c.id AND t.to_status = c.status
        ORDER BY t.id DESC
        LIMIT 1
    ) AS stored_on
FROM certificates AS c
WHERE c.mentor_id = %(mentor_id)s
ORDER BY c.kind COLLATE "C", c.issued_on, c.expires_on

-- name: read_pause_history
-- The open pauses, then the latest lifted ones. Times: see read_explained_mentor.
SELECT p.reason, p.actor, p.lifted_by,
    greatest('0002-01-01', least(p.paused_at, '9998-12-31')) AS paused_at,
    CASE WHEN p.lifted_at IS NOT NULL THEN greatest('0002-01-01', least(p.lifted_at, '9998-12-31')) END AS lifted_at
FROM mentor_pauses AS p
WHERE p.mentor_id = %(mentor_id)s
ORDER BY p.lifted_at DESC NULLS FIRST, p.paused_at DESC
LIMIT 20

-- name: read_loads_of_mentor
SELECT CASE WHEN l.certificate_id IS NULL THEN 'mentor' ELSE concat(l.after ->> 'kind', ' of ', l.after ->> 'issued_on') END
    AS what, l.loaded_at, l.loaded_by,
    CASE WHEN l.before IS NULL THEN 'added' ELSE (
        SELECT string_agg(
            format('%%s: %%s → %%s', n.key, coalesce(l.before ->> n.key, 'none'), coalesce(n.value, 'none')), '; '
        )
        FROM jsonb_each_text(l.after) AS n
        WHERE n.value IS DISTINCT FROM l.before ->> n.key
    ) END AS changes, l.undone_at, l.undone_by
FROM loaded_rows AS l
WHERE l.mentor_id = %(mentor_id)s
ORDER BY l.id DESC
LIMIT 50

-- name: read_logged_reminders
SELECT l.id, l.threshold_days, l.cert_id AS certificate_id, l.expires_on, l.status, l.attempts, l.queued_at, l.sent_at,
    l.maybe_sent, l.last_error AS error, CASE WHEN l.last_error IS NOT NULL THEN l.failure_code END AS code,
    l.next_attempt_at, l.claim_token IS NOT NULL AND l.next_attempt_at > now() AS is_claimed, l.history AS earlier
FROM cert_notification_log AS l
WHERE l.mentor_id = %(mentor_id)s
ORDER BY l.expires_on, l.cert_id, l.threshold_days DESC

-- name: read_portal_history
SELECT o.portal IS NOT NULL AS has_portal, m.portal_visible AS wanted,
    CASE WHEN m.portal_visible AND m.certified_until > '0001-01-01' THEN least(m.certified_until, '2099-12-31') END
        AS visible_until,
    confirmed.visible AS confirmed, confirmed.delivered_at AS confirmed_at, h.name AS hidden_by,
    h.because AS hidden_because, coalesce(NOT h.is_read, false) AS not_read_since,
    r.read_at, m.dynamics_contact_id = ANY (r.visible) AS was_shown,
    (
        SELECT count(*) FROM dynamics_sync_failures AS d WHERE d.mentor_id = m.id AND d.resolved_at IS NOT NULL
    ) AS resolved_failures
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
LEFT JOIN LATERAL (
    SELECT d.visible, d.delivered_at
    FROM portal_sync_events AS d
    WHERE d.mentor_id = m.id AND d.delivered_at IS NOT NULL
    ORDER BY d.delivered_at DESC
    LIMIT 1
) AS confirmed ON true
LEFT JOIN certjob_private.hidden_by_hand AS h ON h.mentor_id = m.id
LEFT JOIN portal_last_reading AS r ON true
WHERE m.id = %(mentor_id)s

-- name: read_open_push
SELECT visible, status, rounds, is_claimed, next_attempt_at
FROM open_pushes
WHERE mentor_id = %(mentor_id)s
