-- Roles. Rights limit tables and columns, policies limit rows.
--   certjob_worker  a role without login, for all commands except `db migrate`. Grant it to the job's database user.
--   authenticated   Supabase's role for every user of the app. Coordinators see and change their own organisation.
--   service_role    Supabase's role for the app's server. It writes the facts and reads the rest.
--   anon            Supabase's role for visitors. It has no rights.

-- All rights of these roles: one row for each role, privilege and object. set_up_rights grants them. No columns: the
-- whole row. While docs/examples/mirror.sql is installed, coordinators write no mirrored facts, because the next copy
-- would undo it.
CREATE VIEW certjob.rights WITH (security_invoker = true) AS
SELECT r.role, privilege, r.type, object, r.columns
FROM (VALUES
    -- The job writes the facts that `load` and `organisation set` write. DELETE is for `db prune` and `load --undo`.
    ('certjob_worker', '{USAGE}'::text[], 'SCHEMA', '{certjob,certjob_private}'::text[], NULL),
    ('certjob_worker', '{SELECT}', 'ALL TABLES IN SCHEMA', '{certjob,certjob_private}', NULL),
    ('certjob_worker', '{INSERT}', 'TABLE', '{certjob.organisations}', 'slug, name'),
    ('certjob_worker', '{UPDATE}', 'TABLE', '{certjob.organisations}', 'name, portal, reminder_thresholds,'
        ' optional_kinds, contact_email, contact_phone, renewal_url, sender'),
    ('certjob_worker', '{INSERT}', 'TABLE', '{certjob.coordinators}', 'id, organisation_id, full_name, email, locale'),
    ('certjob_worker', '{UPDATE}', 'TABLE', '{certjob.coordinators}', 'id, full_name, email, locale'),
    ('certjob_worker', '{DELETE}', 'TABLE', '{certjob.coordinators}', NULL),
    ('certjob_worker', '{INSERT}', 'TABLE', '{certjob.mentors}',
        'organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at'),
    ('certjob_worker', '{UPDATE}', 'TABLE', '{certjob.mentors}', 'full_name, email, locale, dynamics_contact_id,'
        ' left_at, portal_visible, certified_until, decided_visible, without_certificate, seen_certificates, review_on,'
        ' reviewed_contact_id'),
    ('certjob_worker', '{INSERT}', 'TABLE', '{certjob.certificates}',
        'mentor_id, kind, issued_on, expires_on, revoked_at'),
    ('certjob_worker', '{UPDATE}', 'TABLE', '{certjob.certificates}', 'expires_on, revoked_at, status'),
    ('certjob_worker', '{INSERT}', 'TABLE', '{certjob.mentor_pauses}', 'mentor_id, reason, actor, lapsed_kinds'),
    ('certjob_worker', '{UPDATE}', 'TABLE', '{certjob.mentor_pauses}', 'lifted_at, lifted_by, lapsed_kinds'),
    ('certjob_worker', '{INSERT,DELETE}', 'TABLE',
        '{certjob.certificate_transitions,certjob.guard_counts}', NULL),
    ('certjob_worker', '{INSERT,UPDATE,DELETE}', 'TABLE', '{certjob.cert_notification_log,certjob.portal_sync_events,
        certjob.dynamics_sync_failures,certjob.coordinator_digests,certjob.job_runs,certjob.still_due,
        certjob.portal_holds,certjob.portal_unknown_contacts,certjob.acknowledgements,
        certjob.loaded_rows}', NULL),
    ('certjob_worker', '{DELETE}', 'TABLE', '{certjob.mentors,certjob.certificates}', NULL),
    ('certjob_worker', '{INSERT,UPDATE}', 'TABLE', '{certjob.portal_last_reading,certjob.facts_last_copy}', NULL),
    ('certjob_worker', '{EXECUTE}', 'FUNCTION', '{"certjob.prune(timestamptz, integer)",certjob.current_alerts(date),
        "certjob_private.has_mailed(certjob.cert_notification_log, date, integer)",
        "certjob_private.same_mails(uuid, uuid, date, integer)",
        certjob_private.no_full_run_alert(date),"certjob_private.unhidden_mentors(date, text)",
        "certjob_private.must_be_hidden(certjob.mentors, date)",
        "certjob_private.exposures(timestamptz, date, text)",
        certjob_private.contact_is_taken(uuid),"certjob_private.is_listed(uuid, timestamptz)",
        "certjob_private.settle_by_hand(uuid[], text, text)",
        certjob_private.waits_for_a_person(certjob.portal_sync_events),
        certjob_private.days_on_portal(certjob.mentors),certjob_private.facts(anyelement)}', NULL),

    -- The app's server writes no derived columns. It may set ids and keys, because an upsert names them.
    ('service_role', '{USAGE}', 'SCHEMA', '{certjob,certjob_private}', NULL),
    ('service_role', '{SELECT}', 'ALL TABLES IN SCHEMA', '{certjob,certjob_private}', NULL),
    ('service_role', '{EXECUTE}', 'FUNCTION', '{certjob.current_alerts(date),
        certjob_private.no_full_run_alert(date),"certjob_private.unhidden_mentors(date, text)",
        "certjob_private.must_be_hidden(certjob.mentors, date)",
        certjob_private.contact_is_taken(uuid),"certjob_private.is_listed(uuid, timestamptz)"}', NULL),
    ('service_role', '{INSERT,UPDATE,DELETE}', 'TABLE', '{certjob.organisations,certjob.coordinators}', NULL),
    ('service_role', '{INSERT,UPDATE}', 'TABLE', '{certjob.mentors}',
        'id, organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at'),
    ('service_role', '{INSERT,UPDATE}', 'TABLE', '{certjob.certificates}',
        'id, mentor_id, kind, issued_on, expires_on, revoked_at'),
    ('service_role', '{INSERT}', 'TABLE', '{certjob.mentor_pauses}', 'id, mentor_id, reason, actor, paused_at'),
    ('service_role', '{UPDATE}', 'TABLE', '{certjob.mentor_pauses}', 'lifted_at, lifted_by'),
    ('service_role', '{DELETE}', 'TABLE', '{certjob.mentors,certjob.certificates,certjob.mentor_pauses}', NULL),

    -- Coordinators cannot change the id of a certificate, because its reminders refer to it.
    ('authenticated', '{USAGE}', 'SCHEMA', '{certjob}', NULL),
    ('authenticated', '{SELECT}', 'TABLE', '{certjob.organisations,certjob.coordinators,certjob.mentors,
        certjob.certificates,certjob.mentor_pauses,certjob.certificate_transitions,certjob.cert_notification_log,
        certjob.portal_sync_events,certjob.dynamics_sync_failures,certjob.still_due,certjob.portal_holds,
        certjob.alerts,certjob.all_alerts,certjob.open_pushes}', NULL),
    ('authenticated', '{SELECT}', 'TABLE', '{certjob_private.held_names,certjob_private.held_alerts,
        certjob_private.never_reviewed_alerts,certjob_private.push_alerts,certjob_private.reminder_alerts}', NULL),
    ('authenticated', '{SELECT}', 'TABLE', '{certjob.acknowledgements}', 'alert_id, until, acknowledged_at'),
    ('authenticated', '{UPDATE}', 'TABLE', '{certjob.mentors}',
        'full_name, email, locale, dynamics_contact_id, left_at'),
    ('authenticated', '{INSERT}', 'TABLE', '{certjob.certificates}',
        'id, mentor_id, kind, issued_on, expires_on, revoked_at'),
    ('authenticated', '{UPDATE}', 'TABLE', '{certjob.certificates}',
        'mentor_id, kind, issued_on, expires_on, revoked_at'),
    ('authenticated', '{INSERT}', 'TABLE', '{certjob.mentor_pauses}', 'id, mentor_id, reason, actor, paused_at'),
    ('authenticated', '{UPDATE}', 'TABLE', '{certjob.mentor_pauses}', 'lifted_at, lifted_by'),
    ('authenticated', '{EXECUTE}', 'FUNCTION', '{certjob.request_portal_resync(uuid),
        "certjob.confirm_hidden(uuid, text)",
        "certjob_private.must_be_hidden(certjob.mentors, date)",
        certjob_private.coordinator_organisation_id(),certjob_private.user_id(),
        certjob_private.contact_is_taken(uuid),"certjob_private.is_listed(uuid, timestamptz)"}', NULL)
) AS r (role, privileges, type, objects, columns)
CROSS JOIN unnest(r.privileges) AS privilege
CROSS JOIN unnest(r.objects) AS object
WHERE r.role <> 'authenticated' OR privilege NOT IN ('INSERT', 'UPDATE')
    OR object NOT IN ('certjob.mentors', 'certjob.certificates') OR to_regnamespace('certjob_mirror') IS NULL;

-- The policies of coordinators, for their role only: they read and change the rows of their own organisation. Inside
-- the policies of other tables, that of mentors applies. Coordinators sign each pause, and cannot change certjob's
-- pauses or a lifted pause. The worker sees and writes every row. set_up_rights creates those that are missing.
CREATE VIEW certjob_private.policies WITH (security_invoker = true) AS
SELECT 'worker' AS name, 'certjob_worker' AS role, c.oid::regclass::text AS relation, 'ALL' AS command, 'true' AS sees,
    'true' AS writes
FROM pg_class AS c WHERE c.relnamespace = 'certjob'::regnamespace AND c.relkind = 'r'
UNION ALL
SELECT p.name, 'authenticated', relation, p.command, p.sees, p.writes
FROM (VALUES
    ('reads_own', '{certjob.organisations}'::text[], 'SELECT',
        'id = (SELECT certjob_private.coordinator_organisation_id())', NULL),
    ('reads_own', '{certjob.coordinators,certjob.mentors,certjob.portal_holds}', 'SELECT',
        'organisation_id = (SELECT certjob_private.coordinator_organisation_id())', NULL),
    ('reads_own', '{certjob.certificates,certjob.mentor_pauses,certjob.certificate_transitions,
        certjob.cert_notification_log,certjob.portal_sync_events,certjob.still_due}',
        'SELECT', 'EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id)', NULL),
    ('reads_own', '{certjob.dynamics_sync_failures}', 'SELECT',
        'resolved_at IS NULL AND EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id)', NULL),
    ('reads_own', '{certjob.acknowledgements}', 'SELECT',
        $$EXISTS (SELECT FROM certjob.organisations AS o WHERE o.slug = split_part(alert_id, ':', 1))$$, NULL),
    ('changes_own', '{certjob.mentors}', 'UPDATE',
        'organisation_id = (SELECT certjob_private.coordinator_organisation_id())', NULL),
    ('enters_own', '{certjob.certificates}', 'INSERT', NULL,
        'EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id)'),
    ('changes_own', '{certjob.certificates}', 'UPDATE',
        'EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id)', NULL),
    ('opens_own', '{certjob.mentor_pauses}', 'INSERT', NULL,
        $$actor = (SELECT certjob_private.user_id()) AND reason <> 'certification_expired'
        AND EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id)$$),
    ('lifts_own', '{certjob.mentor_pauses}', 'UPDATE',
        $$lifted_at IS NULL AND reason <> 'certification_expired'
        AND EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id)$$,
        $$lifted_by = (SELECT certjob_private.user_id()) AND reason <> 'certification_expired'
        AND EXISTS (SELECT FROM certjob.mentors AS m WHERE m.id = mentor_id)$$)
) AS p (name, relations, command, sees, writes)
CROSS JOIN unnest(p.relations) AS relation;

-- Revokes all rights, then grants those of the view, and creates missing policies. `certjob db migrate` calls it every
-- time, because roles can be created later, and others can grant rights. The command creates certjob_worker before the first file.
CREATE FUNCTION certjob_private.set_up_rights() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    roles CONSTANT text := (
        SELECT string_agg(quote_ident(rolname), ', ') FROM pg_roles
        WHERE rolname IN ('anon', 'authenticated', 'service_role', 'certjob_worker')
    );
    has_users CONSTANT boolean := EXISTS (
        SELECT FROM pg_proc WHERE pronamespace = to_regnamespace('auth') AND proname = 'uid' AND pronargs = 0
    );
    statement text;
BEGIN
    -- Supabase's guide for custom schemas grants ALL to anon, authenticated and service_role, also on later tables.
    EXECUTE format('REVOKE ALL ON SCHEMA certjob, certjob_private FROM PUBLIC, %s', roles);
    FOREACH statement IN ARRAY ARRAY['TABLES', 'SEQUENCES', 'FUNCTIONS'] LOOP
        EXECUTE format('REVOKE ALL ON ALL %s IN SCHEMA certjob, certjob_private FROM PUBLIC, %s', statement, roles);
        EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA certjob REVOKE ALL ON %s FROM %s', statement, roles);
    END LOOP;
    FOR statement IN
        SELECT format('GRANT %s%s ON %s %s TO %I', r.privilege, ' (' || r.columns || ')', r.type, r.object, r.role)
        FROM certjob.rights AS r
        WHERE to_regrole(r.role) IS NOT NULL AND (r.role <> 'authenticated' OR has_users)
    LOOP
        EXECUTE statement;
    END LOOP;
    INSERT INTO certjob.mail_key DEFAULT VALUES ON CONFLICT DO NOTHING;
    IF to_regrole('service_role') IS NOT NULL THEN
        REVOKE ALL ON certjob.mail_key FROM service_role;
    END IF;
    FOR statement IN
        SELECT concat(format('CREATE POLICY %I ON %s FOR %s TO %I', p.name, p.relation, p.command, p.role),
            ' USING (' || p.sees || ')', ' WITH CHECK (' || p.writes || ')')
        FROM certjob_private.policies AS p
        WHERE to_regrole(p.role) IS NOT NULL AND (p.role <> 'authenticated' OR has_users) AND NOT EXISTS (
            SELECT FROM pg_policy AS known WHERE known.polrelid = p.relation::regclass AND known.polname = p.name
        )
    LOOP
        EXECUTE statement;
    END LOOP;

    IF has_database_privilege(current_database(), 'TEMPORARY WITH GRANT OPTION') THEN
        EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO certjob_worker', current_database());
    ELSIF NOT has_database_privilege('certjob_worker', current_database(), 'TEMPORARY') THEN
        RAISE WARNING 'certjob_worker cannot load files yet; as the owner of the database: %',
            format('GRANT TEMPORARY ON DATABASE %I TO certjob_worker', current_database());
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

-- The worker deletes no open rows, opens and lifts only its own pauses, and those of a person only with that person's
-- signature (`certjob pause` and `certjob unpause`).
DO $$
DECLARE
    relation regclass;
BEGIN
    FOR relation IN SELECT oid FROM pg_class WHERE relnamespace = 'certjob'::regnamespace AND relkind = 'r' LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
    END LOOP;
END
$$;
CREATE POLICY worker_signs_pauses ON certjob.mentor_pauses AS RESTRICTIVE FOR INSERT TO certjob_worker
    WITH CHECK (actor = 'certjob' OR actor ~ '^cli:.*\S');
CREATE POLICY worker_signs_lifted_pauses ON certjob.mentor_pauses AS RESTRICTIVE FOR UPDATE TO certjob_worker
    USING (true) WITH CHECK (actor = 'certjob' OR lifted_by ~ '^cli:.*\S');
CREATE POLICY worker_keeps_open_rows ON certjob.cert_notification_log AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (status IN ('sent', 'cancelled', 'superseded'));
CREATE POLICY worker_keeps_open_rows ON certjob.coordinator_digests AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (status IN ('sent', 'cancelled', 'superseded'));
CREATE POLICY worker_keeps_open_rows ON certjob.portal_sync_events AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (status IN ('delivered', 'withdrawn'));
CREATE POLICY worker_keeps_open_rows ON certjob.dynamics_sync_failures AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (resolved_at IS NOT NULL);
CREATE POLICY worker_deletes_loaded_mentors ON certjob.mentors AS RESTRICTIVE FOR DELETE TO certjob_worker USING (EXISTS (
    SELECT FROM certjob.loaded_rows AS l WHERE l.mentor_id = mentors.id AND l.certificate_id IS NULL AND l.before IS NULL
));
CREATE POLICY worker_deletes_loaded_certificates ON certjob.certificates AS RESTRICTIVE FOR DELETE TO certjob_worker
    USING (EXISTS (
        SELECT FROM certjob.loaded_rows AS l
        WHERE l.mentor_id = certificates.mentor_id AND l.certificate_id = certificates.id AND l.before IS NULL
    ));
