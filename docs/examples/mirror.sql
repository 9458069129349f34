-- For an app with its own tables, here public.clubs, public.profiles and public.certifications. certjob_mirror.sync()
-- copies their facts to certjob. Call it before each `certjob run`.
--
-- Adapt the first two views to the columns of your app, and keep the rest. Run this file once as the owner of certjob's
-- schema (on Supabase: postgres). You may run it again. It adds no triggers to the app's tables, so certjob cannot make
-- a statement of the app fail or wait.
BEGIN;
CREATE SCHEMA IF NOT EXISTS certjob_mirror;

-- The mentors. The id of the profile becomes the id of the mentor. A profile without a row here is not a mentor.
CREATE OR REPLACE VIEW certjob_mirror.mentors AS
SELECT p.id, o.id AS organisation_id, p.member_number AS member_no, p.name AS full_name, p.email,
    p.crm_contact AS dynamics_contact_id, p.deactivated_at AS left_at
FROM public.profiles AS p
JOIN public.clubs AS c ON c.id = p.club_id
JOIN certjob.organisations AS o ON o.slug = c.slug
WHERE p.is_mentor;

-- The certificates. Of several of one kind and first day, one counts: not withdrawn, with the latest last day.
CREATE OR REPLACE VIEW certjob_mirror.certificates AS
SELECT DISTINCT ON (c.profile_id, c.course, c.passed_on)
    c.profile_id AS mentor_id, c.course AS kind, c.passed_on AS issued_on, c.valid_until AS expires_on,
    c.withdrawn_at AS revoked_at
FROM public.certifications AS c
JOIN certjob_mirror.mentors AS m ON m.id = c.profile_id
ORDER BY c.profile_id, c.course, c.passed_on, c.withdrawn_at NULLS FIRST, c.valid_until DESC;

-- The mentors for whom certjob's facts differ from the two views.
CREATE OR REPLACE VIEW certjob_mirror.differing AS
SELECT id FROM (
    TABLE certjob_mirror.mentors
    EXCEPT
    SELECT id, organisation_id, member_no, full_name, email, dynamics_contact_id, left_at FROM certjob.mentors
) AS wanted
UNION
SELECT mentor_id FROM (
    TABLE certjob_mirror.certificates
    EXCEPT
    SELECT mentor_id, kind, issued_on, expires_on, revoked_at FROM certjob.certificates
) AS wanted
UNION
SELECT mentor_id FROM (
    SELECT mentor_id, kind, issued_on FROM certjob.certificates
    EXCEPT
    SELECT mentor_id, kind, issued_on FROM certjob_mirror.certificates
) AS unwanted
UNION
SELECT id FROM (SELECT id FROM certjob.mentors EXCEPT SELECT id FROM certjob_mirror.mentors) AS unwanted;

-- Removes a mentor who is no longer in the app.
CREATE OR REPLACE FUNCTION certjob_mirror.remove(mentor uuid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM certjob.mentors WHERE id = mentor;
EXCEPTION WHEN restrict_violation THEN
    -- The portal may still show the mentor. certjob hides the mentor first, and a later call deletes the row. The
    -- changed member number lets another mentor have the old one.
    UPDATE certjob.mentors SET left_at = now(), member_no = format('%s (deleted %s)', left(member_no, 100), id)
    WHERE id = mentor AND member_no NOT LIKE '% (deleted %';
END
$$;

-- Makes the facts of the chosen mentors equal to the views.
CREATE OR REPLACE FUNCTION certjob_mirror.follow(chosen uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO certjob.mentors (id, organisation_id, member_no, full_name, email, dynamics_contact_id, left_at)
    SELECT id, organisation_id, member_no, full_name, email, dynamics_contact_id, left_at
    FROM certjob_mirror.mentors WHERE id = ANY (chosen) ORDER BY id
    ON CONFLICT (id) DO UPDATE
    SET organisation_id = excluded.organisation_id, member_no = excluded.member_no, full_name = excluded.full_name,
        email = excluded.email, dynamics_contact_id = excluded.dynamics_contact_id, left_at = excluded.left_at;
    DELETE FROM certjob.certificates WHERE mentor_id = ANY (chosen) AND (mentor_id, kind, issued_on) NOT IN (
        SELECT mentor_id, kind, issued_on FROM certjob_mirror.certificates WHERE mentor_id = ANY (chosen)
    );
    INSERT INTO certjob.certificates (mentor_id, kind, issued_on, expires_on, revoked_at)
    SELECT mentor_id, kind, issued_on, expires_on, revoked_at
    FROM certjob_mirror.certificates WHERE mentor_id = ANY (chosen)
    ON CONFLICT (mentor_id, kind, issued_on) DO UPDATE
    SET expires_on = excluded.expires_on, revoked_at = excluded.revoked_at;
END
$$;

-- Makes all facts equal to the views, and returns the mentors with rejected facts and the reason. No row means success.
-- It refuses to remove more than `most_removals` mentors at once, because an empty or half-filled table of the app
-- looks the same as mentors who have left.
CREATE OR REPLACE FUNCTION certjob_mirror.sync(most_removals integer DEFAULT 20)
RETURNS TABLE (profile uuid, problem text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '60s' AS $$
DECLARE
    removals CONSTANT integer := (
        SELECT count(*) FROM certjob.mentors
        WHERE left_at IS NULL AND id NOT IN (SELECT id FROM certjob_mirror.mentors)
    );
    released jsonb;
    chunk uuid[];
BEGIN
    IF removals > most_removals THEN
        RAISE EXCEPTION '% mentors are no longer in the app', removals
            USING HINT = format('if that is right: SELECT * FROM certjob_mirror.sync(%s)', removals);
    END IF;
    -- Two mentors may have swapped their contacts, so first release each contact that another mentor gets.
    WITH given_away AS (
        SELECT m.id, m.dynamics_contact_id
        FROM certjob.mentors AS m
        JOIN certjob_mirror.mentors AS other ON other.dynamics_contact_id = m.dynamics_contact_id AND other.id <> m.id
        JOIN certjob_mirror.mentors AS own ON own.id = m.id
        WHERE own.dynamics_contact_id IS DISTINCT FROM m.dynamics_contact_id
        ORDER BY m.id
        FOR NO KEY UPDATE OF m
    ), cleared AS (
        UPDATE certjob.mentors AS m SET dynamics_contact_id = NULL FROM given_away WHERE given_away.id = m.id
    )
    SELECT jsonb_object_agg(id, dynamics_contact_id) INTO released FROM given_away;
    -- Remove mentors first, to free their member numbers.
    PERFORM certjob_mirror.remove(id) FROM (
        SELECT id FROM certjob.mentors EXCEPT SELECT id FROM certjob_mirror.mentors ORDER BY id
    ) AS unwanted;
    FOR chunk IN
        SELECT array_agg(id ORDER BY id)
        FROM (SELECT id, row_number() OVER (ORDER BY id) AS number FROM certjob_mirror.differing) AS numbered
        WHERE id IN (SELECT id FROM certjob_mirror.mentors)
        GROUP BY number / 500 ORDER BY number / 500
    LOOP
        BEGIN
            PERFORM certjob_mirror.follow(chunk);
        EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN  -- one mentor is rejected: try each alone
            FOREACH profile IN ARRAY chunk LOOP
                BEGIN
                    PERFORM certjob_mirror.follow(ARRAY[profile]);
                EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
                    problem := SQLERRM;
                    RETURN NEXT;
                END;
            END LOOP;
        END;
    END LOOP;
    -- A mentor with rejected facts keeps the old contact, unless another mentor has it now.
    FOR profile IN SELECT key::uuid FROM jsonb_each(released) LOOP
        BEGIN
            UPDATE certjob.mentors SET dynamics_contact_id = (released ->> profile::text)::uuid
            WHERE id = profile AND dynamics_contact_id IS NULL
                AND EXISTS (
                    SELECT FROM certjob_mirror.mentors AS m WHERE m.id = profile AND m.dynamics_contact_id IS NOT NULL
                );
        EXCEPTION WHEN unique_violation THEN
            NULL;
        END;
    END LOOP;
END
$$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA certjob_mirror FROM PUBLIC;
GRANT USAGE ON SCHEMA certjob_mirror TO certjob_worker;
GRANT EXECUTE ON FUNCTION certjob_mirror.sync(integer) TO certjob_worker;
COMMIT;

SELECT * FROM certjob_mirror.sync();
