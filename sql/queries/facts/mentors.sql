-- name: find_mentors
-- Mentors by id, member number or e-mail address. The address has no index, so only a text with @ is compared with it.
-- OFFSET 0 makes PostgreSQL before 18 look up the number once per organisation instead of reading the whole index.
WITH found AS (
    SELECT id, member_no, organisation_id
    FROM mentors
    WHERE id = CASE
        WHEN %(name)s::text ~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN %(name)s::text::uuid
    END
    UNION
    SELECT m.id, m.member_no, o.id
    FROM organisations AS o
    CROSS JOIN LATERAL (
        SELECT id, member_no FROM mentors WHERE organisation_id = o.id AND member_no = %(name)s OFFSET 0
    ) AS m
    UNION
    SELECT id, member_no, organisation_id
    FROM mentors
    WHERE strpos(%(name)s, '@') > 0 AND lower(email) = lower(%(name)s)
)
SELECT found.id, found.member_no, o.slug AS organisation
FROM found
JOIN organisations AS o ON o.id = found.organisation_id
WHERE %(organisation)s::text IS NULL OR o.slug = %(organisation)s
ORDER BY o.slug, found.member_no
LIMIT 20

-- name: find_mentors_by_name
-- Mentors whose name may contain a text. lower() maps letters such as Å only in some collations. Such letters are
-- wildcards in the pattern, and the caller compares again.
SELECT m.id, m.member_no, o.slug AS organisation, m.full_name
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE lower(m.full_name) LIKE %(pattern)s
    AND (%(organisation)s::text IS NULL OR o.slug = %(organisation)s)
ORDER BY o.slug, m.member_no
LIMIT 1000

-- name: name_mentors
SELECT m.id, m.member_no, o.slug AS organisation, m.full_name
FROM mentors AS m
JOIN organisations AS o ON o.id = m.organisation_id
WHERE m.id = ANY (%(ids)b::uuid[])

-- name: read_due_mentors
-- One chunk of due mentors for the plan: like lock_due_mentors, but without locks, for a read-only connection.
SELECT id, review_on::text AS review_key
FROM mentors
WHERE review_on <= coalesce(%(due_by)s::date, 'infinity')
    AND (review_on, id) > (%(after_review)s::date, %(after_id)s::uuid)
    AND (%(organisation_id)s::uuid IS NULL OR organisation_id = %(organisation_id)s)
ORDER BY review_on, id
LIMIT %(limit)s

-- name: read_mentors
-- The columns of mentors, and the reason if certificates or pauses exceed a limit. Triggers prevent such rows, but a
-- superuser or an earlier schema may have written them. OFFSET 0 makes the planner look up each mentor.
SELECT m.id, m.member_no, m.organisation_id, m.left_at IS NOT NULL AS "left", m.portal_visible,
    m.dynamics_contact_id IS NOT NULL AS has_contact,
    coalesce(m.dynamics_contact_id <> m.reviewed_contact_id, false) AS contact_replaced, m.certified_until,
    m.decided_visible, m.seen_certificates, m.review_on > '-infinity' AS due_by_calendar,
    coalesce((
        SELECT CASE
            WHEN count(*) > 200 THEN 'more than 200 certificates; delete some of them'
            WHEN max(length(c.kind)) > 200 THEN 'a certificate kind of more than 200 characters; shorten it'
        END
        FROM certificates AS c
        WHERE c.mentor_id = m.id
    ), (
        SELECT CASE
            WHEN count(*) FILTER (WHERE p.reason <> 'certification_expired') > 200
                THEN 'more than 200 open pauses; delete some of them'
            WHEN max(length(p.reason)) > 200 THEN 'a pause reason of more than 200 characters; shorten it'
        END
        FROM mentor_pauses AS p
        WHERE p.mentor_id = m.id AND p.lifted_at IS NULL
    )) AS beyond_bounds
FROM mentors AS m
WHERE m.id = ANY (%(ids)b::uuid[])

-- name: read_certificates
SELECT mentor_id, id, kind, issued_on, expires_on, revoked_at IS NOT NULL AS revoked, status
FROM certificates
WHERE mentor_id = ANY (%(ids)b::uuid[])

-- name: read_open_pauses
SELECT mentor_id, id, reason, lapsed_kinds
FROM mentor_pauses
WHERE mentor_id = ANY (%(ids)b::uuid[]) AND lifted_at IS NULL

-- name: lock_certificates
-- The app locks a certificate before its mentor, so waiting for certificates of locked mentors would deadlock. A row
-- that another session has locked is returned without an id, and its mentor waits for the next pass.
WITH locked AS MATERIALIZED (
    SELECT id, kind, issued_on, expires_on, revoked_at IS NOT NULL AS revoked, status
    FROM certificates
    WHERE mentor_id = ANY (%(ids)b::uuid[])
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT seen.mentor_id, locked.id, locked.kind, locked.issued_on, locked.expires_on, locked.revoked, locked.status
FROM certificates AS seen
LEFT JOIN locked ON locked.id = seen.id
WHERE seen.mentor_id = ANY (%(ids)b::uuid[])

-- name: lock_open_pauses
-- As in lock_certificates, a row that another session has locked is returned without an id.
WITH locked AS MATERIALIZED (
    SELECT id, reason, lapsed_kinds
    FROM mentor_pauses
    WHERE mentor_id = ANY (%(ids)b::uuid[]) AND lifted_at IS NULL
    FOR NO KEY UPDATE SKIP LOCKED
)
SELECT seen.mentor_id, locked.id, locked.reason, locked.lapsed_kinds
FROM mentor_pauses AS seen
LEFT JOIN locked ON locked.id = seen.id
WHERE seen.mentor_id = ANY (%(ids)b::uuid[]) AND seen.lifted_at IS NULL
