-- name: is_mirrored
-- Whether docs/examples/mirror.sql copies the facts from an app.
SELECT to_regnamespace('certjob_mirror') IS NOT NULL

-- name: create_load_tables
-- The staged rows of a file. The tables end with the transaction, because of transaction-mode poolers. The line
-- identifies a mentor of the file. Contact IDs are checked at the commit, because two mentors may swap them. With
-- --exact, an empty cell is chr(1), the UUID of zeros or 0001-01-01, which no cell can have; null changes nothing.
SET CONSTRAINTS ALL DEFERRED;
CREATE TEMPORARY TABLE load_mentors (
    line                integer PRIMARY KEY,
    organisation_id     uuid NOT NULL,
    member_no           text NOT NULL,
    full_name           text,
    email               text,
    locale              text,
    dynamics_contact_id uuid,
    left_on             date,
    listed_id           uuid,
    mentor_id           uuid
) ON COMMIT DROP;
CREATE TEMPORARY TABLE load_certificates (
    line       integer NOT NULL,
    kind       text NOT NULL,
    issued_on  date NOT NULL,
    expires_on date NOT NULL,
    revoked_on date
) ON COMMIT DROP

-- name: copy_load_mentors
COPY pg_temp.load_mentors (
    line, organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_on, listed_id
) FROM STDIN

-- name: copy_load_certificates
-- The line is that of the mentor.
COPY pg_temp.load_certificates (line, kind, issued_on, expires_on, revoked_on) FROM STDIN

-- name: find_load_mentors
-- With the id, later statements find a certificate by its unique index.
UPDATE pg_temp.load_mentors AS l
SET mentor_id = m.id
FROM mentors AS m
WHERE l.mentor_id IS NULL AND m.organisation_id = l.organisation_id AND m.member_no = l.member_no

-- name: reject_load_mentors
-- Checks that need the database. A rejected mentor keeps the old contact ID, which may conflict with another mentor. The
-- caller therefore repeats the statement until it rejects none.
WITH contacts AS (
    SELECT l.line, nullif(coalesce(l.dynamics_contact_id, m.dynamics_contact_id),
            '00000000-0000-0000-0000-000000000000') AS contact_id,
        l.dynamics_contact_id IS DISTINCT FROM m.dynamics_contact_id
            AND l.dynamics_contact_id <> '00000000-0000-0000-0000-000000000000' AS is_new
    FROM pg_temp.load_mentors AS l
    LEFT JOIN mentors AS m ON m.id = l.mentor_id
    UNION ALL
    SELECT NULL, m.dynamics_contact_id, false
    FROM pg_temp.load_mentors AS wanted
    JOIN mentors AS m ON m.dynamics_contact_id = wanted.dynamics_contact_id
    WHERE NOT EXISTS (SELECT FROM pg_temp.load_mentors AS l WHERE l.mentor_id = m.id)
), rejected AS (
    SELECT line, 'dynamics_contact_id' AS column_name, 'another mentor has this contact ID' AS reason
    FROM (SELECT line, is_new, count(*) OVER (PARTITION BY contact_id) AS holders FROM contacts) AS held
    WHERE is_new AND holders > 1
    UNION ALL
    -- An app may write numbers that a file cannot have. A new mentor would get each mail twice.
    SELECT l.line, 'member_no', 'the mentor with this mentor_id has another number'
    FROM pg_temp.load_mentors AS l
    JOIN mentors AS m ON m.id = l.listed_id AND m.id IS DISTINCT FROM l.mentor_id
    UNION ALL
    SELECT l.line, 'member_no', 'no such mentor; a new mentor needs a certificate'
    FROM pg_temp.load_mentors AS l
    WHERE l.mentor_id IS NULL AND NOT EXISTS (SELECT FROM pg_temp.load_certificates AS n WHERE n.line = l.line)
    UNION ALL
    SELECT l.line, 'kind', 'the mentor would have more than 200 certificates'
    FROM pg_temp.load_mentors AS l
    JOIN pg_temp.load_certificates AS n ON n.line = l.line
    LEFT JOIN certificates AS c ON c.mentor_id = l.mentor_id AND c.kind = n.kind AND c.issued_on = n.issued_on
    WHERE c.id IS NULL
    GROUP BY l.line, l.mentor_id
    HAVING count(*) + (SELECT count(*) FROM certificates AS old WHERE old.mentor_id = l.mentor_id) > 200
), deleted AS (
    DELETE FROM pg_temp.load_mentors AS l USING rejected WHERE l.line = rejected.line
)
SELECT line, column_name, reason, false AS is_warning FROM rejected

-- name: find_load_doubts
-- Probable typing errors in a key, before the load: the file would add a row instead of changing the known one.
SELECT l.line, 'member_no' AS column_name, 'a new mentor, but a known one has this number in other letters' AS reason,
    true AS is_warning
FROM pg_temp.load_mentors AS l
JOIN mentors AS m ON m.organisation_id = l.organisation_id AND lower(m.member_no) = lower(l.member_no)
WHERE l.mentor_id IS NULL
UNION
SELECT l.line, 'issued_on', 'a new certificate that is already revoked, but another one of this kind is in force', true
FROM pg_temp.load_mentors AS l
JOIN pg_temp.load_certificates AS n ON n.line = l.line AND n.revoked_on > '0001-01-01'
JOIN certificates AS c ON c.mentor_id = l.mentor_id AND c.kind = n.kind
    AND c.revoked_at IS NULL AND %(today)s BETWEEN c.issued_on AND c.expires_on
WHERE NOT EXISTS (
        SELECT FROM certificates AS k WHERE k.mentor_id = l.mentor_id AND k.kind = n.kind AND k.issued_on = n.issued_on
    )
    AND NOT EXISTS (
        SELECT FROM pg_temp.load_certificates AS f
        WHERE f.line = l.line AND f.kind = c.kind AND f.issued_on = c.issued_on AND f.revoked_on > '0001-01-01'
    )

-- name: list_known_kinds
-- The kinds of the file's organisations before the load.
SELECT DISTINCT m.organisation_id, c.kind
FROM certificates AS c
JOIN mentors AS m ON m.id = c.mentor_id
WHERE m.organisation_id IN (SELECT l.organisation_id FROM pg_temp.load_mentors AS l)
UNION
SELECT o.id, optional.kind
FROM organisations AS o
CROSS JOIN unnest(o.optional_kinds) AS optional (kind)

-- name: read_load_changes
-- What the load will change, before it does. `most` rows of each kind; null: all. `stays`: also certificates of the
-- file's mentors that are not in the file.
WITH fields AS (
    SELECT l.organisation_id, l.member_no, f.what, NULL::text AS kind, NULL::date AS issued_on, f.old,
        nullif(coalesce(f.new, f.old), f.cleared) AS new
    FROM pg_temp.load_mentors AS l
    JOIN mentors AS m ON m.id = l.mentor_id
    CROSS JOIN LATERAL (VALUES
        ('full_name', m.full_name, l.full_name, chr(1)),
        ('email', m.email, l.email, chr(1)),
        ('locale', m.locale, l.locale, NULL),
        ('dynamics_contact_id', m.dynamics_contact_id::text, l.dynamics_contact_id::text,
            '00000000-0000-0000-0000-000000000000'),
        ('left_on', (m.left_at AT TIME ZONE 'UTC')::date::text, l.left_on::text, '0001-01-01')
    ) AS f (what, old, new, cleared)
    UNION ALL
    SELECT l.organisation_id, l.member_no, f.what, n.kind, n.issued_on, f.old,
        nullif(coalesce(f.new, f.old), '0001-01-01')
    FROM pg_temp.load_mentors AS l
    JOIN pg_temp.load_certificates AS n ON n.line = l.line
    JOIN certificates AS c ON c.mentor_id = l.mentor_id AND c.kind = n.kind AND c.issued_on = n.issued_on
    CROSS JOIN LATERAL (VALUES
        ('expires_on', c.expires_on::text, n.expires_on::text),
        ('revoked_on', (c.revoked_at AT TIME ZONE 'UTC')::date::text, n.revoked_on::text)
    ) AS f (what, old, new)
), changes AS (
    SELECT organisation_id, member_no, what, kind, issued_on, old, new FROM fields WHERE old IS DISTINCT FROM new
    UNION ALL
    SELECT l.organisation_id, l.member_no, 'mentor', NULL, NULL, NULL, nullif(l.full_name, chr(1))
    FROM pg_temp.load_mentors AS l
    WHERE l.mentor_id IS NULL
    UNION ALL
    SELECT l.organisation_id, l.member_no, 'certificate', n.kind, n.issued_on, NULL, n.expires_on::text
    FROM pg_temp.load_mentors AS l
    JOIN pg_temp.load_certificates AS n ON n.line = l.line
    LEFT JOIN certificates AS c ON c.mentor_id = l.mentor_id AND c.kind = n.kind AND c.issued_on = n.issued_on
    WHERE c.id IS NULL
    UNION ALL
    SELECT l.organisation_id, l.member_no, 'stays', c.kind, c.issued_on, c.expires_on::text, c.expires_on::text
    FROM pg_temp.load_mentors AS l
    JOIN certificates AS c ON c.mentor_id = l.mentor_id
    WHERE %(stays)s AND NOT EXISTS (
        SELECT FROM pg_temp.load_certificates AS n
        WHERE n.line = l.line AND n.kind = c.kind AND n.issued_on = c.issued_on
    )
), counted AS (
    SELECT organisation_id, member_no, what, kind, issued_on, old, new, count(*) OVER (PARTITION BY what) AS number,
        row_number() OVER (PARTITION BY what ORDER BY organisation_id, member_no, kind, issued_on) AS place
    FROM changes
)
SELECT o.slug AS organisation, member_no, what, kind, issued_on, old, new, number
FROM counted
JOIN organisations AS o ON o.id = organisation_id
WHERE %(most)s::integer IS NULL OR place <= %(most)s
ORDER BY what, organisation, member_no, kind, issued_on

-- name: insert_loaded_mentors
-- If another load is adding the same mentors, this statement waits for it, and a later one changes them.
INSERT INTO mentors (organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at)
SELECT organisation_id, member_no, nullif(full_name, chr(1)), nullif(email, chr(1)), coalesce(locale, 'nb'),
    nullif(dynamics_contact_id, '00000000-0000-0000-0000-000000000000'),
    nullif(left_on, '0001-01-01')::timestamp AT TIME ZONE 'UTC'
FROM pg_temp.load_mentors
WHERE mentor_id IS NULL
ORDER BY organisation_id, member_no
ON CONFLICT (organisation_id, member_no) DO NOTHING

-- name: upsert_loaded_certificates
-- Certificates are locked before mentors, as in the app. A new issue date is a new row. An empty revoked_on keeps a
-- revocation, and 0001-01-01 removes it. A day is stored as midnight in UTC, but a stored time on the same day stays.
-- xmax is 0 in inserted rows.
WITH written AS (
    INSERT INTO certificates AS c (mentor_id, kind, issued_on, expires_on, revoked_at)
    SELECT l.mentor_id, n.kind, n.issued_on, n.expires_on,
        CASE WHEN known.id IS NOT NULL OR n.revoked_on > '0001-01-01'
            THEN n.revoked_on::timestamp AT TIME ZONE 'UTC' END
    FROM pg_temp.load_mentors AS l
    JOIN pg_temp.load_certificates AS n ON n.line = l.line
    LEFT JOIN certificates AS known
        ON known.mentor_id = l.mentor_id AND known.kind = n.kind AND known.issued_on = n.issued_on
    WHERE known.id IS NULL
        OR known.expires_on <> n.expires_on
        OR (known.revoked_at AT TIME ZONE 'UTC')::date
            IS DISTINCT FROM nullif(coalesce(n.revoked_on, (known.revoked_at AT TIME ZONE 'UTC')::date), '0001-01-01')
    ORDER BY l.mentor_id, n.kind, n.issued_on
    ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE
    SET expires_on = excluded.expires_on,
        revoked_at = CASE
            WHEN (excluded.revoked_at AT TIME ZONE 'UTC')::date = (c.revoked_at AT TIME ZONE 'UTC')::date
                THEN c.revoked_at
            ELSE nullif(coalesce(excluded.revoked_at, c.revoked_at), '0001-01-01 UTC')
        END
    WHERE c.expires_on <> excluded.expires_on
        OR (c.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM
            nullif((coalesce(excluded.revoked_at, c.revoked_at) AT TIME ZONE 'UTC')::date, '0001-01-01')
    RETURNING c.xmax = 0 AS added
)
SELECT
    (count(*) FILTER (WHERE added))::integer AS added,
    (count(*) FILTER (WHERE NOT added))::integer AS changed
FROM written

-- name: update_loaded_mentors
-- An empty cell keeps the stored value, and the value that no cell can have removes it. Unchanged mentors are not
-- written. A departure is stored like a revocation.
UPDATE mentors AS m
SET full_name = nullif(coalesce(l.full_name, m.full_name), chr(1)),
    email = nullif(coalesce(l.email, m.email), chr(1)),
    locale = coalesce(l.locale, m.locale),
    dynamics_contact_id = nullif(coalesce(l.dynamics_contact_id, m.dynamics_contact_id),
        '00000000-0000-0000-0000-000000000000'),
    left_at = CASE
        WHEN (m.left_at AT TIME ZONE 'UTC')::date = l.left_on THEN m.left_at
        WHEN l.left_on > '0001-01-01' THEN l.left_on::timestamp AT TIME ZONE 'UTC'
        WHEN l.left_on IS NULL THEN m.left_at
    END
FROM pg_temp.load_mentors AS l
WHERE m.id = l.mentor_id
    AND (
        nullif(coalesce(l.full_name, m.full_name), chr(1)), nullif(coalesce(l.email, m.email), chr(1)),
        coalesce(l.locale, m.locale),
        nullif(coalesce(l.dynamics_contact_id, m.dynamics_contact_id), '00000000-0000-0000-0000-000000000000'),
        nullif(coalesce(l.left_on, (m.left_at AT TIME ZONE 'UTC')::date), '0001-01-01')
    ) IS DISTINCT FROM (
        m.full_name, m.email, m.locale, m.dynamics_contact_id, (m.left_at AT TIME ZONE 'UTC')::date
    )
