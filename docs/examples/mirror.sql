-- For an app with its own tables, here public.clubs, public.profiles and public.certifications. certjob_mirror.sync()
-- copies their facts to certjob. `certjob run` calls it first.
--
-- Adapt the first two views to the columns of your app, and keep the rest. Run this file once as the owner of certjob's
-- schema (on Supabase: postgres). You may run it again: it replaces the schema certjob_mirror. It adds no triggers to
-- the app's tables, so certjob cannot make a statement of the app fail or wait. It does not copy pauses.
--
-- Do not cast texts to uuid or date in the two views. certjob reads such texts, and names the rows that it cannot read;
-- a failed cast would stop the copy of everyone.
BEGIN;
SET LOCAL client_min_messages = warning;
DROP SCHEMA IF EXISTS certjob_mirror CASCADE;
CREATE SCHEMA certjob_mirror;

-- The mentors, one row each. A profile without a row here is not a mentor. `id` must be a uuid; for a number, write
-- md5('profile ' || p.id)::uuid in both views. `app_id` is the id that people find in the app; problems name a mentor
-- without a member number by it. `organisation` is the slug in certjob. A `locale` that is not nn or en counts as nb.
CREATE VIEW certjob_mirror.mentors AS
SELECT p.id, p.id AS app_id, c.slug AS organisation, p.member_number AS member_no, p.name AS full_name, p.email,
    p.language AS locale, p.crm_contact AS dynamics_contact_id, p.deactivated_at AS left_at
FROM public.profiles AS p
LEFT JOIN public.clubs AS c ON c.id = p.club_id
WHERE p.is_mentor;

-- The certificates. Of several of one kind and first day, one counts: not withdrawn, with the latest last day. Each
-- needs a last day. If some of the app have no end, write coalesce(c.valid_until, '2099-12-31') AS expires_on.
CREATE VIEW certjob_mirror.certificates AS
SELECT c.profile_id AS mentor_id, c.course AS kind, c.passed_on AS issued_on, c.valid_until AS expires_on,
    c.withdrawn_at AS revoked_at
FROM public.certifications AS c;

-- Checks the types of the two views, so that a mistake changes nothing. Texts may have any type.
DO $$
DECLARE
    wrong CONSTANT text := (
        SELECT string_agg(format('certjob_mirror.%s.%s is %s, but must be %s', v.relation, v.name,
            coalesce(format_type(a.atttypid, NULL), 'missing'), replace(v.types, ',', ' or ')), '; ')
        FROM (VALUES
            ('mentors', 'id', 'uuid'), ('mentors', 'app_id', ''), ('mentors', 'organisation', ''),
            ('mentors', 'member_no', ''), ('mentors', 'full_name', ''), ('mentors', 'email', ''),
            ('mentors', 'locale', ''),
            ('mentors', 'dynamics_contact_id', 'uuid,text'),
            ('mentors', 'left_at', 'timestamp with time zone,timestamp without time zone,date,text'),
            ('certificates', 'mentor_id', 'uuid'), ('certificates', 'kind', ''),
            ('certificates', 'issued_on', 'date,text'), ('certificates', 'expires_on', 'date,text'),
            ('certificates', 'revoked_at', 'timestamp with time zone,timestamp without time zone,date,text')
        ) AS v (relation, name, types)
        LEFT JOIN pg_attribute AS a
            ON a.attrelid = ('certjob_mirror.' || v.relation)::regclass AND a.attname = v.name AND NOT a.attisdropped
        LEFT JOIN pg_type AS t ON t.oid = a.atttypid
        WHERE a.atttypid IS NULL OR (
            v.types <> '' AND format_type(a.atttypid, NULL) <> ALL (string_to_array(v.types, ','))
            AND NOT (t.typcategory = 'S' AND v.types LIKE '%text')
        )
    );
BEGIN
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '%', wrong USING HINT = 'correct the first two views, and run this file again';
    END IF;
END
$$;

-- Return the value, or null if a text has another form. 01/02/2026 would be two days.
CREATE FUNCTION certjob_mirror.read_date(value date) RETURNS date LANGUAGE sql IMMUTABLE RETURN value;
CREATE FUNCTION certjob_mirror.read_time(value timestamptz) RETURNS timestamptz LANGUAGE sql IMMUTABLE RETURN value;
CREATE FUNCTION certjob_mirror.read_time(value text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN CASE WHEN value ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T]|$)' THEN value::timestamptz END;
EXCEPTION WHEN data_exception THEN
    RETURN NULL;
END
$$;
CREATE FUNCTION certjob_mirror.read_date(value text) RETURNS date LANGUAGE sql STABLE
RETURN CASE WHEN value ~ '^[0-9]{4}-[0-9]{2}-[0-9]{2}$' THEN certjob_mirror.read_time(value)::date END;
CREATE FUNCTION certjob_mirror.read_uuid(value uuid) RETURNS uuid LANGUAGE sql IMMUTABLE RETURN value;
CREATE FUNCTION certjob_mirror.read_uuid(value text) RETURNS uuid LANGUAGE sql IMMUTABLE
RETURN CASE WHEN value ~* '^[{]?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}[}]?$' THEN btrim(value, '{}')::uuid END;

-- All mentors; `organisation_id` is null if certjob does not know the organisation. `wrong` names a column that cannot
-- be read, with the SQLSTATE. A departure, like a revocation, counts from its time on, because certjob has no planned
-- ones.
CREATE VIEW certjob_mirror.all_mentors AS
SELECT m.id, m.app_id::text AS app_id, m.organisation::text AS organisation, o.id AS organisation_id,
    m.member_no::text AS member_no, m.full_name::text AS full_name, m.email::text AS email,
    CASE WHEN lower(m.locale::text) IN ('nn', 'en') THEN lower(m.locale::text) ELSE 'nb' END AS locale,
    certjob_mirror.read_uuid(m.dynamics_contact_id) AS dynamics_contact_id,
    CASE WHEN certjob_mirror.read_time(m.left_at) <= now() THEN certjob_mirror.read_time(m.left_at) END AS left_at,
    CASE
        WHEN m.dynamics_contact_id::text <> '' AND certjob_mirror.read_uuid(m.dynamics_contact_id) IS NULL
            THEN 'dynamics_contact_id cannot be read (22P02)'
        WHEN m.left_at::text <> '' AND certjob_mirror.read_time(m.left_at) IS NULL
            THEN 'left_at cannot be read (22007)'
    END AS wrong
FROM certjob_mirror.mentors AS m
LEFT JOIN certjob.organisations AS o ON o.slug = m.organisation::text;

-- The mentors whose values certjob takes. CASE, because the planner expects few rows of IS NULL, and would loop.
CREATE VIEW certjob_mirror.wanted AS
SELECT m.id, m.organisation_id, m.member_no, m.full_name, m.email, m.locale, m.dynamics_contact_id, m.left_at
FROM certjob_mirror.all_mentors AS m
WHERE m.organisation_id IS NOT NULL AND CASE WHEN m.wrong IS NULL THEN true END;

-- All certificates.
CREATE VIEW certjob_mirror.all_certificates AS
SELECT c.mentor_id, c.kind::text AS kind, certjob_mirror.read_date(c.issued_on) AS issued_on,
    certjob_mirror.read_date(c.expires_on) AS expires_on,
    CASE WHEN certjob_mirror.read_time(c.revoked_at) <= now() THEN certjob_mirror.read_time(c.revoked_at) END
        AS revoked_at,
    CASE
        WHEN certjob_mirror.read_date(c.issued_on) IS NULL THEN 'issued_on cannot be read (22007)'
        WHEN c.expires_on IS NULL THEN 'expires_on is missing (23502)'
        WHEN certjob_mirror.read_date(c.expires_on) IS NULL THEN 'expires_on cannot be read (22007)'
        WHEN c.revoked_at::text <> '' AND certjob_mirror.read_time(c.revoked_at) IS NULL
            THEN 'revoked_at cannot be read (22007)'
    END AS wrong
FROM certjob_mirror.certificates AS c;

-- The certificates that count.
CREATE VIEW certjob_mirror.wanted_certificates AS
SELECT DISTINCT ON (c.mentor_id, c.kind, c.issued_on) c.mentor_id, c.kind, c.issued_on, c.expires_on, c.revoked_at
FROM certjob_mirror.all_certificates AS c
WHERE CASE WHEN c.wrong IS NULL THEN true END
ORDER BY c.mentor_id, c.kind, c.issued_on, c.revoked_at NULLS FIRST, c.expires_on DESC;

-- The certificates in certjob that are missing in the app, of mentors who are in the app. A certificate that cannot be
-- read may be any of them.
CREATE VIEW certjob_mirror.lost_certificates AS
SELECT c.id, c.mentor_id
FROM certjob.certificates AS c
WHERE c.mentor_id IN (SELECT m.id FROM certjob_mirror.mentors AS m)
    AND c.mentor_id NOT IN (
        SELECT w.mentor_id FROM certjob_mirror.all_certificates AS w
        WHERE w.wrong IS NOT NULL AND w.mentor_id IS NOT NULL
    )
    AND NOT EXISTS (
        SELECT FROM certjob_mirror.wanted_certificates AS w
        WHERE w.mentor_id = c.mentor_id AND w.kind = c.kind AND w.issued_on = c.issued_on
    );

-- Deletes a mentor whom the portal hides, if no intent is open. Otherwise certjob hides the mentor first, and a later
-- call deletes the row; the changed member number lets another mentor have the old one. A profile may be a mentor again
-- tomorrow, and must not get the same mail again. So a mentor with sent reminders stays, without name, address and
-- contact, until `certjob db prune` has deleted the reminders.
CREATE FUNCTION certjob_mirror.remove(mentor uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_kept CONSTANT boolean := EXISTS (
        SELECT FROM certjob.cert_notification_log AS l
        WHERE l.mentor_id = mentor AND (l.status = 'sent' OR l.maybe_sent OR l.history <> '[]')
    );
    is_hidden boolean := false;
BEGIN
    IF is_kept AND EXISTS (
        SELECT FROM certjob.mentors AS m WHERE m.id = mentor AND m.left_at IS NOT NULL
            AND m.member_no LIKE '% (deleted %' AND num_nonnulls(m.full_name, m.email, m.dynamics_contact_id) = 0
    ) THEN
        RETURN;
    END IF;
    BEGIN
        DELETE FROM certjob.mentors WHERE id = mentor;
        IF is_kept THEN
            RAISE EXCEPTION USING ERRCODE = 'CJ001';  -- undoes the deletion
        END IF;
    EXCEPTION
        WHEN restrict_violation THEN NULL;
        WHEN SQLSTATE 'CJ001' THEN is_hidden := true;
    END;
    UPDATE certjob.mentors AS m
    SET left_at = coalesce(m.left_at, now()),
        member_no = CASE WHEN m.member_no LIKE '% (deleted %' THEN m.member_no
            ELSE format('%s (deleted %s)', left(m.member_no, 100), m.id) END,
        full_name = CASE WHEN NOT is_hidden THEN m.full_name END,
        email = CASE WHEN NOT is_hidden THEN m.email END,
        dynamics_contact_id = CASE WHEN NOT is_hidden THEN m.dynamics_contact_id END
    WHERE m.id = mentor AND (is_hidden OR m.member_no NOT LIKE '% (deleted %');
END
$$;

-- Makes certjob's facts equal to the app's, and returns the facts that it did not copy: the mentor, and the column or
-- the constraint with the SQLSTATE, never a value of the app. No row means success. It never removes much at once,
-- because a table that is being restored looks the same as mentors who have left. If more than five mentors of an
-- organisation and more than a tenth of them would be deleted, be moved or lose a certificate, it keeps all of these.
-- sync('hlf', 21) permits up to 21 such mentors of `hlf`.
CREATE FUNCTION certjob_mirror.sync(
    allowed_organisation text DEFAULT NULL, allowed_mentors integer DEFAULT 0
) RETURNS TABLE (profile text, member text, problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '60s'
SET row_security = off  -- fails if a policy would hide rows of the app
AS $$
DECLARE
    kept uuid[] := '{}';  -- neither deleted nor moved, and no certificate of theirs is deleted
    released jsonb := '{}';  -- by mentor: the contact and member number that another mentor gets
    app record;
    gone uuid;  -- a mentor who is not in the app
    wrong_column text;
    wrong_rule text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('certjob_mirror.sync'));
    IF EXISTS (SELECT FROM certjob_mirror.mentors AS m GROUP BY m.id HAVING count(*) > 1) THEN
        RAISE EXCEPTION 'certjob_mirror.mentors has two rows for one mentor' USING ERRCODE = 'cardinality_violation';
    END IF;

    FOR app IN
        SELECT array_agg(w.id) AS ids, min(w.member_no) AS member_no
        FROM certjob_mirror.all_mentors AS w
        WHERE w.organisation_id IS NULL
        GROUP BY w.organisation ORDER BY w.organisation
    LOOP
        kept := kept || app.ids;
        profile := NULL;
        member := app.member_no;
        problem := format('organisation is unknown to certjob; create it, or correct it in the app (mentors: %s)',
            cardinality(app.ids));
        RETURN NEXT;
    END LOOP;
    RETURN QUERY
        SELECT w.app_id, w.member_no, w.wrong FROM certjob_mirror.all_mentors AS w WHERE w.wrong IS NOT NULL
        UNION ALL
        SELECT w.app_id, w.member_no, c.wrong FROM certjob_mirror.all_certificates AS c
        JOIN certjob_mirror.all_mentors AS w ON w.id = c.mentor_id
        WHERE c.wrong IS NOT NULL
        ORDER BY 2, 3;
    profile := NULL;
    member := NULL;
    FOR app IN
        SELECT o.slug, array_agg(m.id) AS ids, count(*) FILTER (WHERE m.left_at IS NULL) AS mentors,
            array_agg(m.member_no ORDER BY m.member_no) FILTER (WHERE m.left_at IS NULL AND m.id <> ALL (kept) AND (
                w.id IS NULL OR w.organisation_id <> m.organisation_id
                OR m.id IN (SELECT l.mentor_id FROM certjob_mirror.lost_certificates AS l)
            )) AS losing
        FROM certjob.mentors AS m
        JOIN certjob.organisations AS o ON o.id = m.organisation_id
        LEFT JOIN certjob_mirror.all_mentors AS w ON w.id = m.id
        GROUP BY o.slug ORDER BY o.slug
    LOOP
        CONTINUE WHEN coalesce(cardinality(app.losing), 0) <= greatest(
            CASE WHEN EXISTS (SELECT FROM certjob_mirror.mentors) THEN greatest(5, app.mentors / 10) ELSE 0 END,
            CASE WHEN app.slug = allowed_organisation THEN allowed_mentors END
        );
        kept := kept || app.ids;
        problem := format('%s of %s mentors of %s would be deleted, be moved or lose a certificate, so certjob keeps'
            ' all of these; if the app is right: SELECT * FROM certjob_mirror.sync(%L, %s). Mentors: %s',
            cardinality(app.losing), app.mentors, app.slug, app.slug, cardinality(app.losing),
            array_to_string(app.losing[:20], ', ') || CASE WHEN cardinality(app.losing) > 20 THEN ', …' ELSE '' END);
        RETURN NEXT;
    END LOOP;

    -- First apply what takes rights away, because an invalid name must not keep a mentor visible.
    UPDATE certjob.mentors AS m SET left_at = w.left_at
    FROM certjob_mirror.all_mentors AS w WHERE w.id = m.id AND m.left_at IS NULL AND w.left_at IS NOT NULL;
    UPDATE certjob.certificates AS c SET revoked_at = w.revoked_at
    FROM certjob_mirror.wanted_certificates AS w
    WHERE w.mentor_id = c.mentor_id AND w.kind = c.kind AND w.issued_on = c.issued_on
        AND c.revoked_at IS NULL AND w.revoked_at IS NOT NULL;
    DELETE FROM certjob.certificates
    WHERE id IN (SELECT l.id FROM certjob_mirror.lost_certificates AS l WHERE l.mentor_id <> ALL (kept));

    -- Two mentors may have swapped contacts or member numbers, so first release each value that another mentor gets.
    FOR app IN
        SELECT m.id, m.dynamics_contact_id, m.member_no, given.contact, given.number
        FROM certjob.mentors AS m
        LEFT JOIN certjob_mirror.all_mentors AS own ON own.id = m.id
        CROSS JOIN LATERAL (
            SELECT own.dynamics_contact_id IS DISTINCT FROM m.dynamics_contact_id AND m.dynamics_contact_id IN (
                SELECT w.dynamics_contact_id FROM certjob_mirror.wanted AS w
            ) AS contact, (own.organisation_id, own.member_no) <> (m.organisation_id, m.member_no)
                AND (m.organisation_id, m.member_no) IN (
                    SELECT w.organisation_id, w.member_no FROM certjob_mirror.wanted AS w
                ) AS number
        ) AS given
        WHERE own.wrong IS NULL AND (given.contact OR given.number)
            AND (m.id <> ALL (kept) OR own.organisation_id = m.organisation_id)
        ORDER BY m.id
    LOOP
        released := released || jsonb_build_object(app.id, app);
        UPDATE certjob.mentors
        SET dynamics_contact_id = CASE WHEN app.contact THEN NULL ELSE dynamics_contact_id END,
            member_no = CASE WHEN app.number THEN format('%s (moved %s)', left(member_no, 100), id) ELSE member_no END
        WHERE id = app.id;
    END LOOP;

    FOR gone IN
        SELECT m.id FROM certjob.mentors AS m
        WHERE m.id <> ALL (kept) AND NOT EXISTS (SELECT FROM certjob_mirror.mentors AS w WHERE w.id = m.id)
        ORDER BY m.id
    LOOP
        PERFORM certjob_mirror.remove(gone);
    END LOOP;

    FOR app IN
        SELECT w.id, w.organisation_id, w.member_no, w.full_name, w.email, w.locale, w.dynamics_contact_id, w.left_at
        FROM certjob_mirror.wanted AS w
        LEFT JOIN certjob.mentors AS m ON m.id = w.id
        WHERE (m.id <> ALL (kept)) IS NOT FALSE OR w.organisation_id = m.organisation_id
        EXCEPT
        SELECT id, organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at
        FROM certjob.mentors
        ORDER BY id
    LOOP
        BEGIN
            INSERT INTO certjob.mentors AS m (
                id, organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at
            ) VALUES (
                app.id, app.organisation_id, app.member_no, app.full_name, app.email, app.locale,
                app.dynamics_contact_id, app.left_at
            )
            ON CONFLICT (id) DO UPDATE
            SET organisation_id = excluded.organisation_id, member_no = excluded.member_no,
                full_name = excluded.full_name, email = excluded.email, locale = excluded.locale,
                dynamics_contact_id = excluded.dynamics_contact_id, left_at = excluded.left_at;
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
            GET STACKED DIAGNOSTICS wrong_column = COLUMN_NAME, wrong_rule = CONSTRAINT_NAME;
            profile := (SELECT w.app_id FROM certjob_mirror.all_mentors AS w WHERE w.id = app.id);
            member := app.member_no;
            problem := format('%s was rejected (%s)',
                coalesce(nullif(wrong_column, ''), nullif(wrong_rule, ''), 'a value'), SQLSTATE);
            RETURN NEXT;
            BEGIN  -- the mentor keeps the old values, unless another mentor has them now
                UPDATE certjob.mentors AS m
                SET dynamics_contact_id = old.dynamics_contact_id, member_no = old.member_no
                FROM jsonb_to_record(released -> app.id::text) AS old (dynamics_contact_id uuid, member_no text)
                WHERE m.id = app.id AND released ? app.id::text;
            EXCEPTION WHEN unique_violation THEN
                NULL;
            END;
        END;
    END LOOP;

    FOR gone IN  -- the deleted mentors whose contact another mentor should have got
        SELECT m.id FROM certjob.mentors AS m
        WHERE released ? m.id::text AND NOT EXISTS (SELECT FROM certjob_mirror.mentors AS w WHERE w.id = m.id)
        ORDER BY m.id
    LOOP
        BEGIN  -- if the other mentor's facts were rejected, certjob must still hide the contact
            UPDATE certjob.mentors SET dynamics_contact_id = (released -> gone::text ->> 'dynamics_contact_id')::uuid
            WHERE id = gone;
        EXCEPTION WHEN unique_violation THEN  -- the portal now shows or hides the contact for the other mentor
            UPDATE certjob.mentors SET portal_visible = false WHERE id = gone;
            PERFORM certjob_mirror.remove(gone);
        END;
    END LOOP;

    FOR app IN
        SELECT w.mentor_id, w.kind, w.issued_on, w.expires_on, w.revoked_at
        FROM certjob_mirror.wanted_certificates AS w
        WHERE w.mentor_id IN (SELECT m.id FROM certjob.mentors AS m)
        EXCEPT
        SELECT mentor_id, kind, issued_on, expires_on, revoked_at FROM certjob.certificates
        ORDER BY mentor_id
    LOOP
        BEGIN
            INSERT INTO certjob.certificates (mentor_id, kind, issued_on, expires_on, revoked_at)
            VALUES (app.mentor_id, app.kind, app.issued_on, app.expires_on, app.revoked_at)
            ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE
            SET expires_on = excluded.expires_on, revoked_at = excluded.revoked_at;
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
            GET STACKED DIAGNOSTICS wrong_column = COLUMN_NAME, wrong_rule = CONSTRAINT_NAME;
            SELECT w.app_id, w.member_no INTO profile, member
            FROM certjob_mirror.all_mentors AS w WHERE w.id = app.mentor_id;
            problem := format('%s was rejected (%s)',
                coalesce(nullif(wrong_column, ''), nullif(wrong_rule, ''), 'a value'), SQLSTATE);
            RETURN NEXT;
        END;
    END LOOP;
END
$$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA certjob_mirror FROM PUBLIC;
GRANT USAGE ON SCHEMA certjob_mirror TO certjob_worker;
GRANT EXECUTE ON FUNCTION certjob_mirror.sync(text, integer) TO certjob_worker;
-- From now on, coordinators and `certjob load` cannot write these facts, because the next copy would undo it.
DO $$ BEGIN PERFORM certjob_private.set_up_rights(); END $$;
COMMIT;

SELECT * FROM certjob_mirror.sync();
