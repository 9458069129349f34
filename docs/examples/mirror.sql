-- For an app with its own tables, here public.clubs, public.profiles and public.certifications. certjob_mirror.sync()
-- copies their facts to certjob. `certjob run` calls it first.
--
-- Adapt the first two views to the columns of your app, and keep the rest. Run this file once as the owner of certjob's
-- schema (on Supabase: postgres). You may run it again. It adds no triggers to the app's tables, so certjob cannot make
-- a statement of the app fail or wait. It does not copy pauses.
BEGIN;
CREATE SCHEMA IF NOT EXISTS certjob_mirror;

-- The mentors, one row each. A profile without a row here is not a mentor. `id` must be a uuid; for a number, write
-- md5('profile ' || p.id)::uuid in both views. `organisation` is the slug in certjob.
CREATE OR REPLACE VIEW certjob_mirror.mentors AS
SELECT p.id, c.slug AS organisation, p.member_number AS member_no, p.name AS full_name, p.email,
    p.crm_contact AS dynamics_contact_id, p.deactivated_at AS left_at
FROM public.profiles AS p
LEFT JOIN public.clubs AS c ON c.id = p.club_id
WHERE p.is_mentor;

-- The certificates. Of several of one kind and first day, one counts: not withdrawn, with the latest last day.
CREATE OR REPLACE VIEW certjob_mirror.certificates AS
SELECT DISTINCT ON (c.profile_id, c.course, c.passed_on)
    c.profile_id AS mentor_id, c.course AS kind, c.passed_on AS issued_on, c.valid_until AS expires_on,
    c.withdrawn_at AS revoked_at
FROM public.certifications AS c
ORDER BY c.profile_id, c.course, c.passed_on, c.withdrawn_at NULLS FIRST, c.valid_until DESC;

-- The mentors of known organisations.
CREATE OR REPLACE VIEW certjob_mirror.wanted AS
SELECT m.id, o.id AS organisation_id, m.member_no, m.full_name, m.email, m.dynamics_contact_id, m.left_at
FROM certjob_mirror.mentors AS m
JOIN certjob.organisations AS o ON o.slug = m.organisation;

-- The certificates in certjob that are missing in the app, of mentors who are in the app.
CREATE OR REPLACE VIEW certjob_mirror.lost_certificates AS
SELECT c.id, c.mentor_id
FROM certjob.certificates AS c
WHERE c.mentor_id IN (SELECT m.id FROM certjob_mirror.mentors AS m) AND NOT EXISTS (
    SELECT FROM certjob_mirror.certificates AS w
    WHERE w.mentor_id = c.mentor_id AND w.kind = c.kind AND w.issued_on = c.issued_on
);

-- Makes certjob's facts equal to the app's, and returns the facts that it did not copy, with the reason. No row means
-- success. It never removes much at once, because a table that is being restored looks the same as mentors who have
-- left. If more than five mentors of an organisation and more than a tenth of them would be deleted, be moved or lose a
-- certificate, it keeps all of these. sync('hlf', 21) permits up to 21 such mentors of `hlf`.
CREATE OR REPLACE FUNCTION certjob_mirror.sync(
    allowed_organisation text DEFAULT NULL, allowed_mentors integer DEFAULT 0
) RETURNS TABLE (profile uuid, problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '60s'
SET row_security = off  -- fails if a policy would hide rows of the app
AS $$
DECLARE
    kept uuid[] := '{}';  -- neither deleted nor moved, and no certificate of theirs is deleted
    released jsonb := '{}';  -- by mentor: the contact and member number that another mentor gets
    app record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('certjob_mirror.sync'));
    IF EXISTS (SELECT FROM certjob_mirror.mentors AS m GROUP BY m.id HAVING count(*) > 1) THEN
        RAISE EXCEPTION 'certjob_mirror.mentors has two rows for one mentor';
    END IF;

    FOR app IN
        SELECT m.organisation, array_agg(m.id) AS ids
        FROM certjob_mirror.mentors AS m
        WHERE NOT EXISTS (SELECT FROM certjob.organisations AS o WHERE o.slug = m.organisation)
        GROUP BY m.organisation ORDER BY m.organisation
    LOOP
        kept := kept || app.ids;
        problem := format('certjob has no organisation %s; create it, or correct it in the app (mentors: %s)',
            coalesce(app.organisation, '(none)'), cardinality(app.ids));
        RETURN NEXT;
    END LOOP;
    FOR app IN
        SELECT o.slug, array_agg(m.id) AS ids, count(*) FILTER (WHERE m.left_at IS NULL) AS mentors,
            count(*) FILTER (WHERE m.left_at IS NULL AND m.id <> ALL (kept) AND (
                w.id IS NULL OR w.organisation_id <> m.organisation_id
                OR m.id IN (SELECT l.mentor_id FROM certjob_mirror.lost_certificates AS l)
            )) AS losing
        FROM certjob.mentors AS m
        JOIN certjob.organisations AS o ON o.id = m.organisation_id
        LEFT JOIN certjob_mirror.wanted AS w ON w.id = m.id
        GROUP BY o.slug ORDER BY o.slug
    LOOP
        CONTINUE WHEN app.losing <= greatest(
            CASE WHEN EXISTS (SELECT FROM certjob_mirror.mentors) THEN greatest(5, app.mentors / 10) ELSE 0 END,
            CASE WHEN app.slug = allowed_organisation THEN allowed_mentors END
        );
        kept := kept || app.ids;
        problem := format('%s of %s mentors of %s would be deleted, be moved or lose a certificate, so certjob keeps'
            ' all of these; if the app is right: SELECT * FROM certjob_mirror.sync(%L, %s)',
            app.losing, app.mentors, app.slug, app.slug, app.losing);
        RETURN NEXT;
    END LOOP;

    -- First apply what takes rights away, because an invalid name must not keep a mentor visible.
    UPDATE certjob.mentors AS m SET left_at = w.left_at
    FROM certjob_mirror.mentors AS w WHERE w.id = m.id AND m.left_at IS NULL AND w.left_at IS NOT NULL;
    UPDATE certjob.certificates AS c SET revoked_at = w.revoked_at
    FROM certjob_mirror.certificates AS w
    WHERE w.mentor_id = c.mentor_id AND w.kind = c.kind AND w.issued_on = c.issued_on
        AND c.revoked_at IS NULL AND w.revoked_at IS NOT NULL;
    DELETE FROM certjob.certificates
    WHERE id IN (SELECT l.id FROM certjob_mirror.lost_certificates AS l WHERE l.mentor_id <> ALL (kept));

    -- Two mentors may have swapped contacts or member numbers, so first release each value that another mentor gets.
    FOR app IN
        SELECT m.id, m.dynamics_contact_id, m.member_no, given.contact, given.number
        FROM certjob.mentors AS m
        LEFT JOIN certjob_mirror.wanted AS own ON own.id = m.id
        CROSS JOIN LATERAL (
            SELECT own.dynamics_contact_id IS DISTINCT FROM m.dynamics_contact_id AND m.dynamics_contact_id IN (
                SELECT w.dynamics_contact_id FROM certjob_mirror.wanted AS w
            ) AS contact, (own.organisation_id, own.member_no) <> (m.organisation_id, m.member_no)
                AND (m.organisation_id, m.member_no) IN (
                    SELECT w.organisation_id, w.member_no FROM certjob_mirror.wanted AS w
                ) AS number
        ) AS given
        WHERE (given.contact OR given.number) AND (m.id <> ALL (kept) OR own.organisation_id = m.organisation_id)
        ORDER BY m.id
    LOOP
        released := released || jsonb_build_object(app.id, app);
        UPDATE certjob.mentors
        SET dynamics_contact_id = CASE WHEN app.contact THEN NULL ELSE dynamics_contact_id END,
            member_no = CASE WHEN app.number THEN format('%s (moved %s)', left(member_no, 100), id) ELSE member_no END
        WHERE id = app.id;
    END LOOP;

    FOR profile IN
        SELECT m.id FROM certjob.mentors AS m
        WHERE m.id <> ALL (kept) AND NOT EXISTS (SELECT FROM certjob_mirror.mentors AS w WHERE w.id = m.id)
        ORDER BY m.id
    LOOP
        BEGIN
            DELETE FROM certjob.mentors WHERE id = profile;
        EXCEPTION WHEN restrict_violation THEN
            -- The portal may still show the mentor. certjob hides the mentor first, and a later call deletes the row.
            -- The changed member number lets another mentor have the old one.
            UPDATE certjob.mentors
            SET left_at = coalesce(left_at, now()), member_no = format('%s (deleted %s)', left(member_no, 100), id)
            WHERE id = profile AND member_no NOT LIKE '% (deleted %';
        END;
    END LOOP;

    FOR app IN
        SELECT w.id, w.organisation_id, w.member_no, w.full_name, w.email, w.dynamics_contact_id, w.left_at
        FROM certjob_mirror.wanted AS w
        LEFT JOIN certjob.mentors AS m ON m.id = w.id
        WHERE (m.id <> ALL (kept)) IS NOT FALSE OR w.organisation_id = m.organisation_id
        EXCEPT
        SELECT id, organisation_id, member_no, full_name, email, dynamics_contact_id, left_at FROM certjob.mentors
        ORDER BY id
    LOOP
        BEGIN
            -- A portal_visible of null makes certjob tell the portal, because the state of the contact is unknown.
            INSERT INTO certjob.mentors AS m (
                id, organisation_id, member_no, full_name, email, dynamics_contact_id, left_at, portal_visible
            ) VALUES (
                app.id, app.organisation_id, app.member_no, app.full_name, app.email, app.dynamics_contact_id,
                app.left_at, CASE WHEN app.dynamics_contact_id IS NULL THEN true END
            )
            ON CONFLICT (id) DO UPDATE
            SET organisation_id = excluded.organisation_id, member_no = excluded.member_no,
                full_name = excluded.full_name, email = excluded.email,
                dynamics_contact_id = excluded.dynamics_contact_id, left_at = excluded.left_at;
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
            profile := app.id;
            problem := SQLERRM;
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

    FOR profile IN  -- the deleted mentors whose contact another mentor should have got
        SELECT m.id FROM certjob.mentors AS m
        WHERE released ? m.id::text AND NOT EXISTS (SELECT FROM certjob_mirror.mentors AS w WHERE w.id = m.id)
        ORDER BY m.id
    LOOP
        BEGIN  -- if the other mentor's facts were rejected, certjob must still hide the contact
            UPDATE certjob.mentors SET dynamics_contact_id = (released -> profile::text ->> 'dynamics_contact_id')::uuid
            WHERE id = profile;
        EXCEPTION WHEN unique_violation THEN  -- the portal now shows or hides the contact for the other mentor
            UPDATE certjob.mentors SET portal_visible = false WHERE id = profile;
            BEGIN
                DELETE FROM certjob.mentors WHERE id = profile;
            EXCEPTION WHEN restrict_violation THEN
                NULL;
            END;
        END;
    END LOOP;

    FOR app IN
        SELECT w.mentor_id, w.kind, w.issued_on, w.expires_on, w.revoked_at
        FROM certjob_mirror.certificates AS w
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
            profile := app.mentor_id;
            problem := SQLERRM;
            RETURN NEXT;
        END;
    END LOOP;
END
$$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA certjob_mirror FROM PUBLIC;
GRANT USAGE ON SCHEMA certjob_mirror TO certjob_worker;
GRANT EXECUTE ON FUNCTION certjob_mirror.sync(text, integer) TO certjob_worker;
COMMIT;

SELECT * FROM certjob_mirror.sync();
