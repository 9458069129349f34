-- name: create_load_rows
-- Where a batch of a CSV file is staged. It lives inside the transaction, so it works through a transaction-mode pooler;
-- under --strict all batches share one transaction and the table. Without a kind a row is about a mentor alone.
CREATE TEMPORARY TABLE IF NOT EXISTS load_rows (
    organisation_id     uuid NOT NULL,
    member_no           text NOT NULL,
    full_name           text,
    email               text,
    locale              text,
    dynamics_contact_id uuid,
    left_on             date,
    kind                text,
    issued_on           date,
    expires_on          date,
    revoked_on          date,
    line                integer NOT NULL,
    mentor_id           uuid
) ON COMMIT DROP

-- name: truncate_load_rows
-- Under --strict the batch before is still in the table.
TRUNCATE pg_temp.load_rows

-- name: copy_load_rows
-- COPY is the fastest way in.
COPY pg_temp.load_rows (
    organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_on, kind, issued_on, expires_on,
    revoked_on, line
) FROM STDIN

-- name: resolve_load_rows
-- Every row learns its mentor once. The statements after it then reach a certificate by its whole key; joined through
-- mentors they would walk all certificates of a mentor for each row.
UPDATE pg_temp.load_rows AS r
SET mentor_id = m.id
FROM mentors AS m
WHERE m.organisation_id = r.organisation_id AND m.member_no = r.member_no

-- name: list_unknown_load_rows
-- A file of mentors alone adds nobody: a mistyped number would become a mentor without a certificate.
SELECT line FROM pg_temp.load_rows WHERE mentor_id IS NULL

-- name: lock_loaded_mentors
-- The mentors that will change, or whose certificates will (their triggers write review_on), in one order.
SELECT m.id
FROM mentors AS m
WHERE m.id IN (
    SELECT known.id
    FROM pg_temp.load_rows AS r
    JOIN mentors AS known ON known.id = r.mentor_id
    LEFT JOIN certificates AS c ON c.mentor_id = r.mentor_id AND c.kind = r.kind AND c.issued_on = r.issued_on
    WHERE (c.id IS NULL AND r.kind IS NOT NULL)
        OR c.expires_on <> r.expires_on
        OR (r.revoked_on IS NOT NULL AND (c.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.revoked_on)
        OR (r.left_on IS NOT NULL AND (known.left_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.left_on)
        OR (r.full_name IS NOT NULL AND known.full_name IS DISTINCT FROM r.full_name)
        OR (r.email IS NOT NULL AND known.email IS DISTINCT FROM r.email)
        OR (r.locale IS NOT NULL AND known.locale <> r.locale)
        OR (r.dynamics_contact_id IS NOT NULL AND known.dynamics_contact_id IS DISTINCT FROM r.dynamics_contact_id)
)
ORDER BY m.id
FOR NO KEY UPDATE

-- name: insert_loaded_mentors
-- New mentors. Another load that adds the same ones at this moment is waited for, and its rows are then updated.
INSERT INTO mentors (organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at)
SELECT DISTINCT r.organisation_id, r.member_no, r.full_name, r.email, coalesce(r.locale, 'nb'), r.dynamics_contact_id,
    r.left_on::timestamp AT TIME ZONE 'UTC'
FROM pg_temp.load_rows AS r
WHERE r.kind IS NOT NULL AND NOT EXISTS (
    SELECT FROM mentors AS m WHERE m.organisation_id = r.organisation_id AND m.member_no = r.member_no
)
ORDER BY r.organisation_id, r.member_no
ON CONFLICT (organisation_id, member_no) DO NOTHING

-- name: update_loaded_mentors
-- An empty cell changes nothing; a mentor who is so already is not written. The day of a departure is kept as its midnight
-- in UTC; one of the same day, whenever on it, stays as it is.
UPDATE mentors AS m
SET full_name = coalesce(r.full_name, m.full_name),
    email = coalesce(r.email, m.email),
    locale = coalesce(r.locale, m.locale),
    dynamics_contact_id = coalesce(r.dynamics_contact_id, m.dynamics_contact_id),
    left_at = CASE
        WHEN (m.left_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.left_on
            THEN coalesce(r.left_on::timestamp AT TIME ZONE 'UTC', m.left_at)
        ELSE m.left_at
    END
FROM (
    SELECT DISTINCT mentor_id, full_name, email, locale, dynamics_contact_id, left_on FROM pg_temp.load_rows
) AS r
WHERE m.id = r.mentor_id
    AND (
        (r.full_name IS NOT NULL AND m.full_name IS DISTINCT FROM r.full_name)
        OR (r.email IS NOT NULL AND m.email IS DISTINCT FROM r.email)
        OR (r.locale IS NOT NULL AND m.locale <> r.locale)
        OR (r.dynamics_contact_id IS NOT NULL AND m.dynamics_contact_id IS DISTINCT FROM r.dynamics_contact_id)
        OR (r.left_on IS NOT NULL AND (m.left_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.left_on)
    )

-- name: lock_loaded_certificates
-- The app locks certificate, then mentor (through the trigger): so does a load, the certificates first and in one order.
-- Only rows that will change: a lock is a write, and a second load of the same file writes nothing.
SELECT c.id
FROM pg_temp.load_rows AS r
JOIN certificates AS c ON c.mentor_id = r.mentor_id AND c.kind = r.kind AND c.issued_on = r.issued_on
WHERE c.expires_on <> r.expires_on
    OR (r.revoked_on IS NOT NULL AND (c.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.revoked_on)
ORDER BY c.id
FOR NO KEY UPDATE OF c

-- name: upsert_loaded_certificates
-- A new issue date is a new row, a changed expiry date or revocation changes the row in place, an empty revoked_on never
-- revives. The day of a revocation is kept as its midnight in UTC; one of the same day, whenever on it, stays as it is.
-- xmax is 0 in a row that this statement inserted.
WITH written AS (
    INSERT INTO certificates AS c (mentor_id, kind, issued_on, expires_on, revoked_at)
    SELECT r.mentor_id, r.kind, r.issued_on, r.expires_on, r.revoked_on::timestamp AT TIME ZONE 'UTC'
    FROM pg_temp.load_rows AS r
    LEFT JOIN certificates AS known
        ON known.mentor_id = r.mentor_id AND known.kind = r.kind AND known.issued_on = r.issued_on
    WHERE (known.id IS NULL AND r.kind IS NOT NULL)
        OR known.expires_on <> r.expires_on
        OR (r.revoked_on IS NOT NULL AND (known.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM r.revoked_on)
    ORDER BY r.mentor_id, r.kind, r.issued_on
    ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE
    SET expires_on = excluded.expires_on,
        revoked_at = CASE
            WHEN (excluded.revoked_at AT TIME ZONE 'UTC')::date = (c.revoked_at AT TIME ZONE 'UTC')::date THEN c.revoked_at
            ELSE coalesce(excluded.revoked_at, c.revoked_at)
        END
    WHERE c.expires_on <> excluded.expires_on
        OR (
            excluded.revoked_at IS NOT NULL
            AND (c.revoked_at AT TIME ZONE 'UTC')::date IS DISTINCT FROM (excluded.revoked_at AT TIME ZONE 'UTC')::date
        )
    RETURNING c.xmax = 0 AS added
)
SELECT
    (count(*) FILTER (WHERE added))::integer AS added,
    (count(*) FILTER (WHERE NOT added))::integer AS changed
FROM written
