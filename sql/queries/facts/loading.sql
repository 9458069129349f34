-- name: is_mirrored
-- Whether docs/examples/mirror.sql copies the facts from an app.
SELECT to_regnamespace('certjob_mirror') IS NOT NULL

-- name: create_load_tables
-- The staged rows of a file. The tables end with the transaction, because of transaction-mode poolers. The line
-- identifies a mentor of the file; a null changes nothing. Contact IDs are checked at the commit, because two mentors may
-- swap them.
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

-- name: begin_load
-- The triggers row_loaded record each change of this transaction.
SELECT set_config('certjob.load_id', %(load_id)s::text, true), set_config('certjob.loaded_by', %(by)s, true)

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
    SELECT l.line, coalesce(l.dynamics_contact_id, m.dynamics_contact_id) AS contact_id,
        l.dynamics_contact_id <> m.dynamics_contact_id OR m.dynamics_contact_id IS NULL AS is_new
    FROM pg_temp.load_mentors AS l
    LEFT JOIN mentors AS m ON m.id = l.mentor_id
    UNION ALL
    SELECT NULL, m.dynamics_contact_id, false
    FROM pg_temp.load_mentors AS wanted
    JOIN mentors AS m ON m.dynamics_contact_id = wanted.dynamics_contact_id
    WHERE NOT EXISTS (SELECT FROM pg_temp.load_mentors AS l WHERE l.mentor_id = m.id)
), rejected AS (
    SELECT line, 'dynamics_contact_id' AS column_name, 'another mentor has this contact ID' AS reason
    FROM (SELECT line, is_new, contact_id, count(*) OVER (PARTITION BY contact_id) AS holders FROM contacts) AS held
    WHERE is_new AND contact_id IS NOT NULL AND holders > 1
    UNION ALL
    SELECT l.line, 'member_no', 'the mentor with this number has another name, another address and another contact ID'
    FROM pg_temp.load_mentors AS l
    JOIN mentors AS m ON m.id = l.mentor_id
    WHERE lower(l.full_name) <> lower(m.full_name) AND lower(l.email) <> lower(m.email)
        AND l.dynamics_contact_id <> m.dynamics_contact_id
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
-- Probable typing errors, before the load: the file would add a row instead of changing the known one, or change another
-- person's. Two numbers are alike in any case of letters, and without spaces and leading zeros.
WITH numbers AS (
    SELECT l.line, l.organisation_id, l.member_no, l.mentor_id IS NULL AS is_new
    FROM pg_temp.load_mentors AS l
    UNION ALL
    SELECT NULL, m.organisation_id, m.member_no, false
    FROM mentors AS m
    WHERE EXISTS (
        SELECT FROM pg_temp.load_mentors AS n WHERE n.organisation_id = m.organisation_id AND n.mentor_id IS NULL
    )
), alike AS (
    SELECT line, is_new, min(member_no) OVER same <> max(member_no) OVER same AS has_others
    FROM numbers
    WINDOW same AS (
        PARTITION BY organisation_id,
            regexp_replace(replace(lower(member_no), ' ', ''), '(^|[^0-9])0+(?=[0-9])', '\1', 'g')
    )
)
SELECT line, 'member_no' AS column_name,
    'a new mentor, but another one has this number except for spaces, leading zeros or capitals' AS reason,
    true AS is_warning
FROM alike
WHERE is_new AND has_others
UNION
SELECT l.line, 'member_no', 'the mentor with this number has another name and another address', true
FROM pg_temp.load_mentors AS l
JOIN mentors AS m ON m.id = l.mentor_id
WHERE lower(l.full_name) <> lower(m.full_name) AND lower(l.email) <> lower(m.email)
    AND (l.dynamics_contact_id <> m.dynamics_contact_id) IS NULL
UNION
SELECT l.line, 'issued_on', 'a new certificate that is already revoked, but another one of this kind is in force', true
FROM pg_temp.load_mentors AS l
JOIN pg_temp.load_certificates AS n ON n.line = l.line AND n.revoked_on IS NOT NULL
JOIN certificates AS c ON c.mentor_id = l.mentor_id AND c.kind = n.kind
    AND c.revoked_at IS NULL AND %(today)s BETWEEN c.issued_on AND c.expires_on
WHERE NOT EXISTS (
        SELECT FROM certificates AS k WHERE k.mentor_id = l.mentor_id AND k.kind = n.kind AND k.issued_on = n.issued_on
    )
    AND NOT EXISTS (
        SELECT FROM pg_temp.load_certificates AS f
        WHERE f.line = l.line AND f.kind = c.kind AND f.issued_on = c.issued_on AND f.revoked_on IS NOT NULL
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

-- name: insert_loaded_mentors
-- If another load is adding the same mentors, this statement waits for it, and a later one changes them.
INSERT INTO mentors (organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at)
SELECT organisation_id, member_no, full_name, email, coalesce(locale, 'nb'), dynamics_contact_id,
    left_on::timestamp AT TIME ZONE 'UTC'
FROM pg_temp.load_mentors
WHERE mentor_id IS NULL
ORDER BY organisation_id, member_no
ON CONFLICT (organisation_id, member_no) DO NOTHING

-- name: upsert_loaded_certificates
-- Certificates are locked before mentors, as in the app. A new issue date is a new row. An empty revoked_on keeps a
-- revocation. A day is stored as midnight in UTC, but a stored time on the same day stays.
INSERT INTO certificates AS c (mentor_id, kind, issued_on, expires_on, revoked_at)
SELECT l.mentor_id, n.kind, n.issued_on, n.expires_on, n.revoked_on::timestamp AT TIME ZONE 'UTC'
FROM pg_temp.load_mentors AS l
JOIN pg_temp.load_certificates AS n ON n.line = l.line
LEFT JOIN certificates AS known
    ON known.mentor_id = l.mentor_id AND known.kind = n.kind AND known.issued_on = n.issued_on
WHERE known.id IS NULL
    OR known.expires_on <> n.expires_on
    OR (known.revoked_at AT TIME ZONE 'UTC')::date
        IS DISTINCT FROM coalesce(n.revoked_on, (known.revoked_at AT TIME ZONE 'UTC')::date)
ORDER BY l.mentor_id, n.kind, n.issued_on
ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE
SET expires_on = excluded.expires_on,
    revoked_at = CASE
        WHEN (excluded.revoked_at AT TIME ZONE 'UTC')::date = (c.revoked_at AT TIME ZONE 'UTC')::date
            THEN c.revoked_at
        ELSE coalesce(excluded.revoked_at, c.revoked_at)
    END
WHERE c.expires_on <> excluded.expires_on
    OR (c.revoked_at AT TIME ZONE 'UTC')::date
        IS DISTINCT FROM (coalesce(excluded.revoked_at, c.revoked_at) AT TIME ZONE 'UTC')::date

-- name: update_loaded_mentors
-- An empty cell keeps the stored value. Unchanged mentors are not written. A departure is stored like a revocation.
UPDATE mentors AS m
SET full_name = coalesce(l.full_name, m.full_name), email = coalesce(l.email, m.email),
    locale = coalesce(l.locale, m.locale),
    dynamics_contact_id = coalesce(l.dynamics_contact_id, m.dynamics_contact_id),
    left_at = CASE
        WHEN (m.left_at AT TIME ZONE 'UTC')::date = l.left_on THEN m.left_at
        ELSE coalesce(l.left_on::timestamp AT TIME ZONE 'UTC', m.left_at)
    END
FROM pg_temp.load_mentors AS l
WHERE m.id = l.mentor_id
    AND (
        coalesce(l.full_name, m.full_name), coalesce(l.email, m.email), coalesce(l.locale, m.locale),
        coalesce(l.dynamics_contact_id, m.dynamics_contact_id), coalesce(l.left_on, (m.left_at AT TIME ZONE 'UTC')::date)
    ) IS DISTINCT FROM (
        m.full_name, m.email, m.locale, m.dynamics_contact_id, (m.left_at AT TIME ZONE 'UTC')::date
    )

-- name: end_load
-- The row of the load itself, unless it has changed nothing.
INSERT INTO loaded_rows (load_id, loaded_by)
SELECT %(load_id)s, %(by)s
WHERE EXISTS (SELECT FROM loaded_rows WHERE load_id = %(load_id)s)

-- name: count_load_changes
SELECT
    count(*) FILTER (WHERE certificate_id IS NULL AND before IS NULL) AS mentors_added,
    count(*) FILTER (WHERE certificate_id IS NULL AND before IS NOT NULL) AS mentors_changed,
    count(*) FILTER (WHERE certificate_id IS NOT NULL AND before IS NULL) AS certificates_added,
    count(*) FILTER (WHERE certificate_id IS NOT NULL AND before IS NOT NULL) AS certificates_changed
FROM loaded_rows
WHERE load_id = %(load_id)s AND mentor_id IS NOT NULL

-- name: read_load_changes
-- Each changed value. An added row is one change, with the mentor's name or the certificate's last day.
SELECT o.slug AS organisation, m.member_no, changed.what, l.after ->> 'kind' AS kind,
    (l.after ->> 'issued_on')::date AS issued_on, changed.old, changed.new
FROM loaded_rows AS l
JOIN mentors AS m ON m.id = l.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
CROSS JOIN LATERAL (
    SELECT CASE WHEN l.certificate_id IS NULL THEN 'mentor' ELSE 'certificate' END AS what, NULL AS old,
        coalesce(l.after ->> 'expires_on', l.after ->> 'full_name') AS new
    WHERE l.before IS NULL
    UNION ALL
    SELECT replace(n.key, '_at', '_on'), left(l.before ->> n.key, days.length), left(n.value, days.length)
    FROM jsonb_each_text(l.after) AS n
    CROSS JOIN LATERAL (SELECT CASE WHEN n.key IN ('left_at', 'revoked_at') THEN 10 ELSE 1000 END AS length) AS days
    WHERE n.value IS DISTINCT FROM l.before ->> n.key AND l.before IS NOT NULL
) AS changed
WHERE l.load_id = %(load_id)s
ORDER BY changed.what, organisation, m.member_no, kind, issued_on

-- name: find_old_certificates
-- New certificates of known mentors, if their first day is long ago: a file that is shifted by one row has them.
SELECT m.member_no, l.after ->> 'kind' AS kind, (l.after ->> 'issued_on')::date AS issued_on,
    count(*) OVER () AS number
FROM loaded_rows AS l
JOIN mentors AS m ON m.id = l.mentor_id
WHERE l.load_id = %(load_id)s AND l.certificate_id IS NOT NULL AND l.before IS NULL
    AND (l.after ->> 'issued_on')::date < %(since)s
    AND NOT EXISTS (
        SELECT FROM loaded_rows AS n
        WHERE n.load_id = l.load_id AND n.mentor_id = l.mentor_id AND n.certificate_id IS NULL AND n.before IS NULL
    )
ORDER BY m.member_no, issued_on
LIMIT 3

-- name: lock_last_load
SELECT load_id, loaded_at, loaded_by, undone_at, undone_by
FROM loaded_rows
WHERE mentor_id IS NULL
ORDER BY id DESC
LIMIT 1
FOR NO KEY UPDATE

-- name: defer_contacts
-- Contact IDs are checked at the commit, because the load may have swapped two.
SET CONSTRAINTS ALL DEFERRED

-- name: undo_certificates
-- Only rows that are as the load has left them. A certificate that is deleted no longer counts for a pause that certjob
-- has opened since; otherwise that pause would stay.
WITH rows AS (
    SELECT certificate_id, mentor_id, before, after, loaded_at
    FROM loaded_rows
    WHERE load_id = %(load_id)s AND certificate_id IS NOT NULL
), deleted AS (
    DELETE FROM certificates AS c USING rows AS r
    WHERE c.id = r.certificate_id AND r.before IS NULL AND certjob_private.facts(c) = r.after
    RETURNING c.id, c.mentor_id, c.kind, r.loaded_at
), restored AS (
    UPDATE certificates AS c
    SET expires_on = (r.before ->> 'expires_on')::date, revoked_at = (r.before ->> 'revoked_at')::timestamptz
    FROM rows AS r
    WHERE c.id = r.certificate_id AND certjob_private.facts(c) = r.after AND r.before IS NOT NULL
)
UPDATE mentor_pauses AS p
SET lapsed_kinds = ARRAY(
    SELECT k.kind FROM unnest(p.lapsed_kinds) AS k (kind)
    WHERE NOT EXISTS (SELECT FROM deleted AS d WHERE d.mentor_id = p.mentor_id AND d.kind = k.kind)
        OR EXISTS (
            SELECT FROM certificates AS c
            WHERE c.mentor_id = p.mentor_id AND c.kind = k.kind AND c.id NOT IN (SELECT d.id FROM deleted AS d)
        )
)
WHERE p.actor = 'certjob' AND p.lifted_at IS NULL
    AND EXISTS (SELECT FROM deleted AS d WHERE d.mentor_id = p.mentor_id AND d.loaded_at <= p.paused_at)

-- name: undo_mentors
UPDATE mentors AS m
SET full_name = b.full_name, email = b.email, locale = b.locale, dynamics_contact_id = b.dynamics_contact_id,
    left_at = b.left_at
FROM loaded_rows AS l
CROSS JOIN LATERAL jsonb_populate_record(NULL::certjob.mentors, l.before) AS b
WHERE l.load_id = %(load_id)s AND l.certificate_id IS NULL AND l.before IS NOT NULL
    AND m.id = l.mentor_id AND certjob_private.facts(m) = l.after

-- name: forget_added_mentors
-- The mentors whom the load has added, if certjob has not shown or mailed them and no one has entered anything about them.
-- Their contacts are as before the load, so they need not be hidden before they are deleted.
UPDATE mentors AS m
SET portal_visible = false
FROM loaded_rows AS l
WHERE l.load_id = %(load_id)s AND l.certificate_id IS NULL AND l.before IS NULL
    AND m.id = l.mentor_id AND certjob_private.facts(m) = l.after
    AND NOT EXISTS (SELECT FROM certificates AS c WHERE c.mentor_id = m.id)
    AND NOT EXISTS (SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.actor <> 'certjob')
    AND NOT EXISTS (
        SELECT FROM cert_notification_log AS n WHERE n.mentor_id = m.id AND n.status IN ('pending', 'sent')
    )
    AND NOT EXISTS (
        SELECT FROM portal_sync_events AS e WHERE e.mentor_id = m.id AND (e.visible OR e.status <> 'delivered')
    )
RETURNING m.id

-- name: delete_mentors
DELETE FROM mentors WHERE id = ANY (%(ids)s::uuid[])

-- name: mark_undone
UPDATE loaded_rows SET undone_at = now(), undone_by = %(by)s WHERE load_id = %(load_id)s

-- name: list_kept_rows
-- The rows that are not as before the load, because someone or certjob has changed them since. A deleted certificate
-- that the load had added is gone as before.
SELECT o.slug AS organisation, m.member_no, m.full_name, l.after ->> 'kind' AS kind,
    (l.after ->> 'issued_on')::date AS issued_on,
    CASE WHEN l.certificate_id IS NULL AND l.before IS NULL THEN 'has been shown, mailed or changed since'
        ELSE 'changed since' END AS why
FROM loaded_rows AS l
JOIN mentors AS m ON m.id = l.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id
LEFT JOIN certificates AS c ON c.id = l.certificate_id
WHERE l.load_id = %(load_id)s
    AND CASE WHEN l.certificate_id IS NULL THEN certjob_private.facts(m) ELSE certjob_private.facts(c) END
        IS DISTINCT FROM l.before
ORDER BY 1, 2, 4, 5
