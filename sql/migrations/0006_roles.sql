-- Roles. Rights limit tables and columns, policies limit rows.
--   certjob_worker  a role without login, for all commands except `db migrate`. Grant it to the job's database user.
--   authenticated   Supabase's role for every user of the app. Coordinators see and change their own organisation.
--   service_role    Supabase's role for the app's server. It writes the facts and reads the rest.
--   anon            Supabase's role for visitors. It has no rights.

-- Revokes all rights, then grants. `certjob db migrate` calls it every time, because roles can be created later, and
-- others can grant rights. The command creates certjob_worker before the first file.
CREATE FUNCTION certjob_private.set_up_rights() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    roles CONSTANT text := (
        SELECT string_agg(quote_ident(rolname), ', ') FROM pg_roles
        WHERE rolname IN ('anon', 'authenticated', 'service_role', 'certjob_worker')
    );
    objects text;
BEGIN
    -- Supabase's guide for custom schemas grants ALL to anon, authenticated and service_role, also on later tables.
    EXECUTE format('REVOKE ALL ON SCHEMA certjob, certjob_private FROM PUBLIC, %s', roles);
    FOREACH objects IN ARRAY ARRAY['TABLES', 'SEQUENCES', 'FUNCTIONS'] LOOP
        EXECUTE format('REVOKE ALL ON ALL %s IN SCHEMA certjob, certjob_private FROM PUBLIC, %s', objects, roles);
        EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA certjob REVOKE ALL ON %s FROM %s', objects, roles);
    END LOOP;

    -- The job writes the facts that `load` and `organisation set` write. DELETE is for `db prune`.
    GRANT USAGE ON SCHEMA certjob TO certjob_worker;
    IF has_database_privilege(current_database(), 'TEMPORARY WITH GRANT OPTION') THEN
        EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO certjob_worker', current_database());
    ELSIF NOT has_database_privilege('certjob_worker', current_database(), 'TEMPORARY') THEN
        RAISE WARNING 'certjob_worker cannot load files yet; as the owner of the database: %',
            format('GRANT TEMPORARY ON DATABASE %I TO certjob_worker', current_database());
    END IF;
    GRANT SELECT ON ALL TABLES IN SCHEMA certjob TO certjob_worker;
    GRANT INSERT (slug, name),
        UPDATE (name, portal, reminder_thresholds, optional_kinds, contact_email, contact_phone, renewal_url, sender)
        ON certjob.organisations TO certjob_worker;
    GRANT INSERT (id, organisation_id, full_name, email, locale), UPDATE (id, full_name, email, locale), DELETE
        ON certjob.coordinators TO certjob_worker;
    GRANT INSERT (organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at),
        UPDATE (full_name, email, locale, dynamics_contact_id, left_at, portal_visible, certified_until, review_on)
        ON certjob.mentors TO certjob_worker;
    GRANT INSERT (mentor_id, kind, issued_on, expires_on, revoked_at), UPDATE (expires_on, revoked_at, status)
        ON certjob.certificates TO certjob_worker;
    GRANT INSERT (mentor_id, reason, actor), UPDATE (lifted_at, lifted_by) ON certjob.mentor_pauses TO certjob_worker;
    GRANT INSERT, DELETE ON certjob.certificate_transitions, certjob.guard_counts TO certjob_worker;
    GRANT INSERT, UPDATE, DELETE ON certjob.cert_notification_log, certjob.portal_sync_events,
        certjob.dynamics_sync_failures, certjob.coordinator_digests, certjob.job_runs, certjob.held_reviews,
        certjob.review_problems, certjob.portal_unknown_contacts, certjob.acknowledgements TO certjob_worker;
    GRANT INSERT, UPDATE ON certjob.portal_last_reading TO certjob_worker;
    GRANT EXECUTE ON FUNCTION certjob.prune(timestamptz, integer), certjob.current_alerts(date),
        certjob_private.contact_is_taken(uuid) TO certjob_worker;

    -- The app's server writes no derived columns. It may set ids and keys, because an upsert names them.
    IF to_regrole('service_role') IS NOT NULL THEN
        GRANT USAGE ON SCHEMA certjob TO service_role;
        GRANT SELECT ON ALL TABLES IN SCHEMA certjob TO service_role;
        GRANT EXECUTE ON FUNCTION certjob.current_alerts(date), certjob_private.contact_is_taken(uuid) TO service_role;
        GRANT INSERT, UPDATE, DELETE ON certjob.organisations, certjob.coordinators TO service_role;
        GRANT INSERT (id, organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at),
            UPDATE (id, organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at), DELETE
            ON certjob.mentors TO service_role;
        GRANT INSERT (id, mentor_id, kind, issued_on, expires_on, revoked_at),
            UPDATE (id, mentor_id, kind, issued_on, expires_on, revoked_at), DELETE
            ON certjob.certificates TO service_role;
        GRANT INSERT (id, mentor_id, reason, actor, paused_at), UPDATE (lifted_at, lifted_by), DELETE
            ON certjob.mentor_pauses TO service_role;
    END IF;

    -- Coordinators cannot change the id of a certificate, because its reminders refer to it.
    IF to_regrole('authenticated') IS NOT NULL AND EXISTS (
        SELECT FROM pg_proc WHERE pronamespace = to_regnamespace('auth') AND proname = 'uid' AND pronargs = 0
    ) THEN
        GRANT USAGE ON SCHEMA certjob TO authenticated;
        GRANT SELECT ON certjob.organisations, certjob.coordinators, certjob.mentors, certjob.certificates,
            certjob.mentor_pauses, certjob.certificate_transitions, certjob.cert_notification_log,
            certjob.portal_sync_events, certjob.dynamics_sync_failures, certjob.held_reviews, certjob.review_problems,
            certjob.alerts, certjob.all_alerts, certjob.open_pushes TO authenticated;
        GRANT SELECT (alert_id, cause, number, until, ended_at) ON certjob.acknowledgements TO authenticated;
        GRANT UPDATE (full_name, email, locale, dynamics_contact_id, left_at) ON certjob.mentors TO authenticated;
        GRANT INSERT (id, mentor_id, kind, issued_on, expires_on, revoked_at),
            UPDATE (mentor_id, kind, issued_on, expires_on, revoked_at) ON certjob.certificates TO authenticated;
        GRANT INSERT (id, mentor_id, reason, actor, paused_at), UPDATE (lifted_at, lifted_by)
            ON certjob.mentor_pauses TO authenticated;
        GRANT EXECUTE ON FUNCTION certjob.request_portal_resync(uuid), certjob_private.coordinator_organisation_id(),
            certjob_private.user_id(), certjob_private.contact_is_taken(uuid) TO authenticated;
    END IF;

    IF EXISTS (
        SELECT FROM pg_publication AS p WHERE p.pubname = 'supabase_realtime' AND NOT p.puballtables AND NOT EXISTS (
            SELECT FROM pg_publication_rel AS r
            WHERE r.prpubid = p.oid AND r.prrelid = 'certjob.dynamics_sync_failures'::regclass
        )
    ) THEN
        ALTER PUBLICATION supabase_realtime ADD TABLE certjob.dynamics_sync_failures;
    END IF;
END
$$;

-- The worker sees and writes every row, but opens and lifts only its own pauses and deletes no open rows. Coordinators
-- read the rows of their own organisation. Their policies are for PUBLIC, because the roles exist only on Supabase.
DO $$
DECLARE
    relation regclass;
BEGIN
    FOR relation IN SELECT oid FROM pg_class WHERE relnamespace = 'certjob'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
        EXECUTE format('CREATE POLICY worker ON %s TO certjob_worker USING (true) WITH CHECK (true)', relation);
    END LOOP;
    FOREACH relation IN ARRAY '{certjob.coordinators,certjob.mentors,certjob.held_reviews}'::regclass[] LOOP
        EXECUTE format('CREATE POLICY reads_own ON %s FOR SELECT'
            ' USING (organisation_id = (SELECT certjob_private.coordinator_organisation_id()))', relation);
    END LOOP;
    FOREACH relation IN ARRAY '{certjob.certificates,certjob.mentor_pauses,certjob.certificate_transitions,
        certjob.cert_notification_log,certjob.portal_sync_events,certjob.review_problems}'::regclass[]
    LOOP  -- the policy of mentors applies inside
        EXECUTE format('CREATE POLICY reads_own ON %s FOR SELECT'
            ' USING (EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id))', relation);
    END LOOP;
END
$$;
CREATE POLICY worker_opens_its_own ON certjob.mentor_pauses AS RESTRICTIVE FOR INSERT TO certjob_worker
    WITH CHECK (actor = 'certjob');
CREATE POLICY worker_lifts_its_own ON certjob.mentor_pauses AS RESTRICTIVE FOR UPDATE TO certjob_worker
    USING (true) WITH CHECK (actor = 'certjob');
CREATE POLICY worker_keeps_open_rows ON certjob.cert_notification_log AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (status IN ('sent', 'cancelled', 'superseded'));
CREATE POLICY worker_keeps_open_rows ON certjob.coordinator_digests AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (status IN ('sent', 'cancelled', 'superseded'));
CREATE POLICY worker_keeps_open_rows ON certjob.portal_sync_events AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (status IN ('delivered', 'withdrawn'));
CREATE POLICY worker_keeps_open_rows ON certjob.dynamics_sync_failures AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (resolved_at IS NOT NULL);

CREATE POLICY reads_own ON certjob.organisations FOR SELECT
    USING (id = (SELECT certjob_private.coordinator_organisation_id()));
CREATE POLICY reads_own ON certjob.dynamics_sync_failures FOR SELECT
    USING (resolved_at IS NULL AND EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id));
CREATE POLICY reads_own ON certjob.acknowledgements FOR SELECT
    USING (EXISTS (SELECT FROM certjob.organisations AS o WHERE o.slug = split_part(alert_id, ':', 1)));
CREATE POLICY changes_own ON certjob.mentors FOR UPDATE
    USING (organisation_id = (SELECT certjob_private.coordinator_organisation_id()));
CREATE POLICY enters_own ON certjob.certificates FOR INSERT
    WITH CHECK (EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id));
CREATE POLICY changes_own ON certjob.certificates FOR UPDATE
    USING (EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id));
-- Coordinators sign each pause. They cannot change certjob's pauses or a lifted pause.
CREATE POLICY opens_own ON certjob.mentor_pauses FOR INSERT
    WITH CHECK (actor = (SELECT certjob_private.user_id()) AND reason <> 'certification_expired'
        AND EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id));
CREATE POLICY lifts_own ON certjob.mentor_pauses FOR UPDATE
    USING (lifted_at IS NULL AND reason <> 'certification_expired'
        AND EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id))
    WITH CHECK (lifted_by = (SELECT certjob_private.user_id()) AND reason <> 'certification_expired'
        AND EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id));
