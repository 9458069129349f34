-- Who may do what. Two roles work with certjob's tables beside their owner:
--
--   certjob_worker  a role without login: what the commands need (but `db migrate`) and no more. The operator grants it
--                   to the database user of the cron job.
--   authenticated   Supabase's role of everybody who is logged in to the app: coordinators, own organisation only.
--
-- Supabase's anon gets nothing. Grants and policies are made by functions, since the roles may come after the tables:
-- they can be called again, and then change only what is missing.

-- Also what the earlier migrations made: a trigger runs its function without this right, and nobody else should.
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA certjob_private FROM PUBLIC;

-- Of which organisation is whoever asks a coordinator? NULL: of none. As definer, because a policy on coordinators that
-- reads coordinators would call itself; in a schema that nobody else may use, so that only policies can call it.
--
-- An empty search_path would be none for types: pg_temp is looked into first unless it is named, auth.uid() ends with
-- ::uuid, and the check of a domain pg_temp.uuid is code of the caller's, which would run as the owner.
CREATE FUNCTION certjob_private.coordinator_organisation_id() RETURNS uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT c.organisation_id FROM public.coordinators AS c WHERE c.id = (SELECT auth.uid()));
END
$$;
REVOKE ALL ON FUNCTION certjob_private.coordinator_organisation_id() FROM PUBLIC;

-- The app's "try again now": does to the mentor's event what `certjob resync` does to it; the next `certjob deliver`
-- pushes it. It does not review the mentor, and so never shows somebody about whom certjob has yet to decide.
--
-- The time zone is set, since otherwise the caller's decides on current_date.
CREATE FUNCTION public.request_portal_resync(
    mentor_id uuid, OUT event_id bigint, OUT event_version integer, OUT visible boolean, OUT in_flight boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
#variable_conflict use_column
DECLARE
    mentor record;
    organisation record;
    wanted boolean;
BEGIN
    -- Mentor before event, as certjob locks them. The organisation is read after the wait, in a newer snapshot: whoever
    -- changes its rules holds its mentors.
    SELECT m.id, m.organisation_id, m.left_at, m.portal_visible, m.review_on
    INTO mentor
    FROM public.mentors AS m
    WHERE m.id = request_portal_resync.mentor_id
        AND m.organisation_id = (SELECT certjob_private.coordinator_organisation_id())
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN  -- the same words whether there is such a mentor or not
        RAISE EXCEPTION 'only a coordinator of the mentor''s organisation may ask for a resync'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT o.name, o.portal, o.optional_kinds
    INTO organisation
    FROM public.organisations AS o
    WHERE o.id = mentor.organisation_id;
    IF organisation.portal IS NULL THEN
        RAISE EXCEPTION '% has no portal, so there is nothing to push for this mentor', organisation.name;
    END IF;

    wanted := coalesce(mentor.portal_visible, (
        SELECT e.visible FROM public.portal_sync_events AS e
        WHERE e.mentor_id = mentor.id AND e.status IN ('pending', 'blocked')
    ));
    IF mentor.left_at IS NOT NULL
        OR EXISTS (SELECT FROM public.mentor_pauses AS p WHERE p.mentor_id = mentor.id AND p.lifted_at IS NULL)
    THEN
        wanted := false;
    ELSIF wanted IS NOT FALSE AND (wanted IS NULL OR mentor.review_on <= current_date) THEN
        -- Facts that no review has seen. Beyond doubt (a day's margin for time zones) they must say: certified.
        wanted := true;
        IF EXISTS (
            SELECT FROM public.certificates AS held
            WHERE held.mentor_id = mentor.id
                AND (held.revoked_at IS NOT NULL OR held.issued_on <= current_date + 1)
                AND held.kind <> ALL (organisation.optional_kinds)
                AND NOT EXISTS (
                    SELECT FROM public.certificates AS c
                    WHERE c.mentor_id = mentor.id AND c.kind = held.kind AND c.revoked_at IS NULL
                        AND c.issued_on < current_date AND c.expires_on > current_date
                )
        ) THEN
            RAISE EXCEPTION 'this mentor waits for a review, so nobody knows yet whether to show or to hide them'
                USING HINT = 'the next `certjob run` decides and pushes; `certjob resync` does so at once';
        END IF;
    END IF;

    UPDATE public.mentors AS m SET portal_visible = wanted
    WHERE m.id = mentor.id AND m.portal_visible IS DISTINCT FROM wanted;
    -- The same statement as queue_portal_events.sql.
    INSERT INTO public.portal_sync_events AS e (mentor_id, visible)
    VALUES (mentor.id, wanted)
    ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
    SET visible = excluded.visible,
        version = e.version + 1,
        status = 'pending',
        attempts = 0,
        wanted_at = CASE WHEN e.visible = excluded.visible THEN e.wanted_at ELSE now() END,
        last_error = NULL,
        run_id = NULL,
        claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END,
        next_attempt_at = CASE
            WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.next_attempt_at ELSE now()
        END
    RETURNING e.id, e.version, e.visible, e.claim_token IS NOT NULL
    INTO event_id, event_version, visible, in_flight;
END
$$;
REVOKE ALL ON FUNCTION public.request_portal_resync(uuid) FROM PUBLIC;
COMMENT ON FUNCTION public.request_portal_resync(uuid) IS
    'for the app: makes the mentor''s portal push due now; coordinators of the mentor''s organisation only';

-- Makes a policy that is not there yet. CREATE POLICY knows no IF NOT EXISTS.
CREATE FUNCTION certjob_private.ensure_policy(name text, on_table text, rest text) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_policies AS p
        WHERE p.schemaname = 'public' AND p.tablename = on_table AND p.policyname = name
    ) THEN
        EXECUTE format('CREATE POLICY %I ON public.%I %s', name, on_table, rest);
    END IF;
END
$$;

-- Creates certjob_worker where it is missing, gives it its rights, and returns what is left to do (NULL: nothing).
CREATE FUNCTION certjob_private.set_up_worker() RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    each_table text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'certjob_worker') THEN
        BEGIN
            CREATE ROLE certjob_worker NOLOGIN;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN
                NULL;  -- roles belong to the whole server: the migration of another database was faster
            WHEN insufficient_privilege THEN
                RETURN 'the role certjob_worker was not created, since this user may not create roles; as one who may: '
                    'CREATE ROLE certjob_worker NOLOGIN; then, as this user: SELECT certjob_private.set_up_roles()';
        END;
    END IF;

    -- The facts, column by column: certjob writes those that a file or `organisation set` tells it.
    GRANT SELECT ON public.organisations, public.coordinators, public.mentors, public.certificates,
        public.mentor_pauses, public.certificate_transitions, public.cert_notification_log, public.portal_sync_events,
        public.dynamics_sync_failures, public.coordinator_digests, public.job_runs, public.certjob_migrations,
        public.portal_alerts TO certjob_worker;
    GRANT INSERT (slug, name),
        UPDATE (name, portal, reminder_thresholds, optional_kinds, contact_email, contact_phone, renewal_url)
        ON public.organisations TO certjob_worker;
    GRANT INSERT (id, organisation_id, full_name, email, locale), UPDATE (id, full_name, email, locale), DELETE
        ON public.coordinators TO certjob_worker;
    GRANT INSERT (organisation_id, member_no, full_name, email, locale, dynamics_contact_id),
        UPDATE (full_name, email, locale, dynamics_contact_id, portal_visible, review_on)
        ON public.mentors TO certjob_worker;
    GRANT INSERT (mentor_id, kind, issued_on, expires_on, revoked_at), UPDATE (expires_on, revoked_at, status)
        ON public.certificates TO certjob_worker;
    GRANT INSERT (mentor_id, reason, actor), UPDATE (lifted_at, lifted_by) ON public.mentor_pauses TO certjob_worker;
    -- What certjob writes. DELETE is for retention.
    GRANT INSERT, DELETE ON public.certificate_transitions TO certjob_worker;
    GRANT INSERT, UPDATE, DELETE ON public.cert_notification_log, public.portal_sync_events,
        public.dynamics_sync_failures, public.coordinator_digests, public.job_runs TO certjob_worker;

    FOREACH each_table IN ARRAY ARRAY['organisations', 'coordinators', 'mentors', 'certificates', 'mentor_pauses',
        'certificate_transitions', 'cert_notification_log', 'portal_sync_events', 'dynamics_sync_failures',
        'coordinator_digests', 'job_runs', 'certjob_migrations']
    LOOP
        PERFORM certjob_private.ensure_policy('worker works here', each_table,
            'TO certjob_worker USING (true) WITH CHECK (true)');
    END LOOP;
    -- certjob opens and lifts only its own pauses. It locks the others too: USING must let it.
    PERFORM certjob_private.ensure_policy('worker opens its own', 'mentor_pauses',
        $p$AS RESTRICTIVE FOR INSERT TO certjob_worker WITH CHECK (actor = 'certjob')$p$);
    PERFORM certjob_private.ensure_policy('worker lifts its own', 'mentor_pauses',
        $p$AS RESTRICTIVE FOR UPDATE TO certjob_worker USING (true) WITH CHECK (actor = 'certjob')$p$);
    -- Retention takes what is closed, never what is open.
    PERFORM certjob_private.ensure_policy('worker keeps what is open', 'cert_notification_log',
        $p$AS RESTRICTIVE FOR DELETE TO certjob_worker USING (status IN ('sent', 'cancelled', 'superseded'))$p$);
    PERFORM certjob_private.ensure_policy('worker keeps what is open', 'portal_sync_events',
        $p$AS RESTRICTIVE FOR DELETE TO certjob_worker USING (status IN ('delivered', 'withdrawn'))$p$);
    PERFORM certjob_private.ensure_policy('worker keeps what is open', 'dynamics_sync_failures',
        'AS RESTRICTIVE FOR DELETE TO certjob_worker USING (resolved_at IS NOT NULL)');
    PERFORM certjob_private.ensure_policy('worker keeps what is open', 'coordinator_digests',
        $p$AS RESTRICTIVE FOR DELETE TO certjob_worker USING (status IN ('sent', 'cancelled', 'superseded'))$p$);

    -- Everybody has these two unless somebody took them away.
    IF NOT has_schema_privilege('certjob_worker', 'public', 'USAGE') THEN
        GRANT USAGE ON SCHEMA public TO certjob_worker;
    END IF;
    IF NOT has_database_privilege('certjob_worker', current_database(), 'TEMPORARY') THEN
        EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO certjob_worker', current_database());
    END IF;
    -- To grant what one may not give away only warns, and does not say what to do.
    IF NOT has_schema_privilege('certjob_worker', 'public', 'USAGE')
        OR NOT has_database_privilege('certjob_worker', current_database(), 'TEMPORARY')
    THEN
        RETURN format('certjob_worker cannot work in this database yet; as its owner: GRANT USAGE ON SCHEMA public TO '
            'certjob_worker; GRANT TEMPORARY ON DATABASE %I TO certjob_worker', current_database());
    END IF;
    RETURN NULL;
END
$$;

-- Takes away what Supabase's default privileges gave to the app's roles, and gives coordinators what is theirs.
CREATE FUNCTION certjob_private.set_up_app() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    grantee text;
    own_mentor CONSTANT text := $p$EXISTS (
        SELECT FROM public.mentors AS m
        WHERE m.id = mentor_id AND m.organisation_id = (SELECT certjob_private.coordinator_organisation_id())
    )$p$;
    own_organisation CONSTANT text := 'organisation_id = (SELECT certjob_private.coordinator_organisation_id())';
BEGIN
    FOR grantee IN
        SELECT 'PUBLIC' UNION ALL
        SELECT quote_ident(rolname) FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated')
    LOOP
        EXECUTE format('REVOKE ALL ON public.organisations, public.coordinators, public.mentors, public.certificates, '
            'public.mentor_pauses, public.certificate_transitions, public.cert_notification_log, '
            'public.portal_sync_events, public.dynamics_sync_failures, public.coordinator_digests, public.job_runs, '
            'public.certjob_migrations, public.portal_alerts FROM %s', grantee);
        EXECUTE format('REVOKE ALL ON SEQUENCE public.certificate_transitions_id_seq, '
            'public.cert_notification_log_id_seq, public.portal_sync_events_id_seq, '
            'public.dynamics_sync_failures_id_seq, public.coordinator_digests_id_seq FROM %s', grantee);
        EXECUTE format('REVOKE ALL ON FUNCTION public.request_portal_resync(uuid) FROM %s', grantee);
    END LOOP;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'service_role') THEN
        REVOKE ALL ON FUNCTION public.request_portal_resync(uuid) FROM service_role;  -- it is no coordinator
    END IF;

    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'authenticated')
        OR NOT EXISTS (
            SELECT FROM pg_catalog.pg_proc AS p
            JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
            WHERE n.nspname = 'auth' AND p.proname = 'uid' AND p.pronargs = 0
        )
    THEN
        RETURN;
    END IF;

    GRANT EXECUTE ON FUNCTION certjob_private.coordinator_organisation_id() TO authenticated;
    GRANT EXECUTE ON FUNCTION public.request_portal_resync(uuid) TO authenticated;
    GRANT SELECT ON public.organisations, public.coordinators, public.mentors, public.certificates,
        public.mentor_pauses, public.certificate_transitions, public.cert_notification_log, public.portal_sync_events,
        public.dynamics_sync_failures, public.portal_alerts TO authenticated;
    GRANT UPDATE (full_name, email, locale, dynamics_contact_id, left_at) ON public.mentors TO authenticated;
    -- Never the id of a certificate that is there: the log of its reminders hangs on it.
    GRANT INSERT (id, mentor_id, kind, issued_on, expires_on, revoked_at),
        UPDATE (mentor_id, kind, issued_on, expires_on, revoked_at) ON public.certificates TO authenticated;
    GRANT INSERT (id, mentor_id, reason, actor, paused_at), UPDATE (lifted_at, lifted_by)
        ON public.mentor_pauses TO authenticated;

    PERFORM certjob_private.ensure_policy('coordinators read their own', 'organisations',
        'FOR SELECT TO authenticated USING (id = (SELECT certjob_private.coordinator_organisation_id()))');
    PERFORM certjob_private.ensure_policy('coordinators read their own', each_table,
            format('FOR SELECT TO authenticated USING (%s)', own_organisation))
        FROM unnest(ARRAY['coordinators', 'mentors']) AS each_table;
    PERFORM certjob_private.ensure_policy('coordinators read their own', each_table,
            format('FOR SELECT TO authenticated USING (%s)', own_mentor))
        FROM unnest(ARRAY['certificates', 'mentor_pauses', 'certificate_transitions', 'cert_notification_log',
            'portal_sync_events']) AS each_table;
    -- Realtime asks this policy too, for each listener.
    PERFORM certjob_private.ensure_policy('coordinators read their own', 'dynamics_sync_failures',
        format('FOR SELECT TO authenticated USING (resolved_at IS NULL AND %s)', own_mentor));
    -- A name of 64 MB, in mails, pages and digests, would take the night 2.4 GB, and every organisation's with it.
    PERFORM certjob_private.ensure_policy('coordinators change their own', 'mentors',
        format('FOR UPDATE TO authenticated USING (%1$s) WITH CHECK (%1$s
            AND length(coalesce(full_name, %2$L)) <= 1000 AND length(coalesce(email, %2$L)) <= 1000)',
            own_organisation, ''));
    PERFORM certjob_private.ensure_policy('coordinators enter their own', 'certificates',
        format('FOR INSERT TO authenticated WITH CHECK (%s)', own_mentor));
    PERFORM certjob_private.ensure_policy('coordinators change their own', 'certificates',
        format('FOR UPDATE TO authenticated USING (%1$s) WITH CHECK (%1$s)', own_mentor));
    -- A coordinator signs what they do, leaves certjob's pauses alone, and does not rewrite a pause that is over.
    PERFORM certjob_private.ensure_policy('coordinators open their own', 'mentor_pauses',
        format($p$FOR INSERT TO authenticated WITH CHECK (
            actor = (SELECT auth.uid())::text AND reason <> 'certification_expired' AND %s)$p$, own_mentor));
    PERFORM certjob_private.ensure_policy('coordinators lift their own', 'mentor_pauses',
        format($p$FOR UPDATE TO authenticated
            USING (lifted_at IS NULL AND reason <> 'certification_expired' AND %1$s)
            WITH CHECK (lifted_by = (SELECT auth.uid())::text AND reason <> 'certification_expired' AND %1$s)$p$,
            own_mentor));

    IF EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = 'supabase_realtime' AND NOT puballtables)
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_publication_tables
            WHERE pubname = 'supabase_realtime' AND schemaname = 'public' AND tablename = 'dynamics_sync_failures'
        )
    THEN
        ALTER PUBLICATION supabase_realtime ADD TABLE public.dynamics_sync_failures;
    END IF;
END
$$;

-- For whoever owns the tables, should one of the roles come later: SELECT certjob_private.set_up_roles().
CREATE FUNCTION certjob_private.set_up_roles() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    left_to_do CONSTANT text := certjob_private.set_up_worker();
BEGIN
    PERFORM certjob_private.set_up_app();
    IF left_to_do IS NOT NULL THEN
        RAISE WARNING '%', left_to_do;
    END IF;
    -- certjob's statements name no schema, and a function unnest(uuid[]) in public would fit better than PostgreSQL's.
    IF has_schema_privilege('public', 'public', 'CREATE') THEN
        RAISE WARNING 'everybody may create functions in the schema public, which the commands would then run; as its '
            'owner: REVOKE CREATE ON SCHEMA public FROM PUBLIC';
    END IF;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA certjob_private FROM PUBLIC;
SELECT certjob_private.set_up_roles();
