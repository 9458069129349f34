-- An organisation may have a sender of its own, and a file may tell who has left.

ALTER TABLE organisations ADD COLUMN sender text CHECK (sender <> '');
COMMENT ON COLUMN organisations.sender IS 'who its mails are from: an address, or a name and <address>; null: CERTJOB_MAIL_FROM';
CREATE TRIGGER sender_length BEFORE INSERT OR UPDATE OF sender ON organisations
    FOR EACH ROW WHEN (length(NEW.sender) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('sender', '1,000 characters');

-- As in 0007, with the two columns.
CREATE OR REPLACE FUNCTION certjob_private.set_up_worker() RETURNS text
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
        UPDATE (name, portal, reminder_thresholds, optional_kinds, contact_email, contact_phone, renewal_url,
            sender)
        ON public.organisations TO certjob_worker;
    GRANT INSERT (id, organisation_id, full_name, email, locale), UPDATE (id, full_name, email, locale), DELETE
        ON public.coordinators TO certjob_worker;
    GRANT INSERT (organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at),
        UPDATE (full_name, email, locale, dynamics_contact_id, left_at, portal_visible, review_on)
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

SELECT certjob_private.set_up_roles();
