-- The schema as the migrations make it, for reading: no program runs this file. `make schema` writes it anew; a test
-- compares it with the migrations.
--
-- This is a database on Supabase. Elsewhere the role authenticated and the publication do not exist. The owner of a
-- table and Supabase's service_role may do everything; any other role has only the rights of the GRANTs below.

CREATE SCHEMA certjob_private;

----------------------------------------------------------------------------------------------------------------------
-- Facts: the app, an import or a person writes them. certjob writes the columns that are called derived
----------------------------------------------------------------------------------------------------------------------

-- organisations: the member organisations, each with its portal and its rules for reminders.
CREATE TABLE organisations (
    id                  uuid      NOT NULL DEFAULT gen_random_uuid(),
    slug                text      NOT NULL,
    name                text      NOT NULL,
    portal              text,
    reminder_thresholds integer[] NOT NULL DEFAULT '{60,30,14,7,1,-1}',
    optional_kinds      text[]    NOT NULL DEFAULT '{}',
    contact_email       text,
    contact_phone       text,
    renewal_url         text,
    -- who its mails are from: an address, or a name and <address>; null: CERTJOB_MAIL_FROM
    sender              text,
    CONSTRAINT organisations_pkey PRIMARY KEY (id),
    CONSTRAINT organisations_slug_key UNIQUE (slug),
    CONSTRAINT organisations_name_check CHECK (name <> ''),
    CONSTRAINT organisations_optional_kinds_check CHECK (array_position(optional_kinds, NULL::text) IS NULL),
    CONSTRAINT organisations_portal_check CHECK (portal = 'dynamics'),
    CONSTRAINT organisations_reminder_thresholds_check
        CHECK (COALESCE(array_ndims(reminder_thresholds), 1) = 1 AND cardinality(reminder_thresholds) <= 50 AND
            array_position(reminder_thresholds, NULL::integer) IS NULL AND ('-3650' <= ALL (reminder_thresholds)) AND
            (3650 >= ALL (reminder_thresholds))),
    CONSTRAINT organisations_sender_check CHECK (sender <> ''),
    CONSTRAINT organisations_slug_check CHECK (slug ~ '^[a-z0-9][a-z0-9_-]{0,62}$')
);
ALTER TABLE organisations ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON organisations TO authenticated;
GRANT SELECT, INSERT (slug, name), UPDATE (name, portal, reminder_thresholds, optional_kinds, contact_email,
    contact_phone, renewal_url, sender)
    ON organisations TO certjob_worker;
CREATE POLICY "coordinators read their own" ON organisations
    FOR SELECT TO authenticated
    USING (id = (SELECT certjob_private.coordinator_organisation_id()));
CREATE POLICY "worker works here" ON organisations FOR ALL TO certjob_worker USING (true) WITH CHECK (true);
CREATE TRIGGER contact_email_length BEFORE INSERT OR UPDATE OF contact_email ON organisations
    FOR EACH ROW
    WHEN (length(new.contact_email) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('contact_email', '1,000 characters');
CREATE TRIGGER contact_phone_length BEFORE INSERT OR UPDATE OF contact_phone ON organisations
    FOR EACH ROW
    WHEN (length(new.contact_phone) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('contact_phone', '1,000 characters');
CREATE TRIGGER name_length BEFORE INSERT OR UPDATE OF name ON organisations
    FOR EACH ROW
    WHEN (length(new.name) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('name', '1,000 characters');
CREATE TRIGGER optional_kinds_length BEFORE INSERT OR UPDATE OF optional_kinds ON organisations
    FOR EACH ROW
    WHEN (length(array_to_string(new.optional_kinds, '')) > 10000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('optional_kinds', '10,000 characters');
CREATE TRIGGER organisation_updated AFTER UPDATE OF reminder_thresholds, optional_kinds, portal ON organisations
    FOR EACH ROW
    WHEN (old.reminder_thresholds IS DISTINCT FROM new.reminder_thresholds OR old.optional_kinds IS DISTINCT FROM
        new.optional_kinds OR old.portal IS DISTINCT FROM new.portal)
    EXECUTE FUNCTION certjob_private.organisation_updated();
CREATE TRIGGER renewal_url_length BEFORE INSERT OR UPDATE OF renewal_url ON organisations
    FOR EACH ROW
    WHEN (length(new.renewal_url) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('renewal_url', '1,000 characters');
CREATE TRIGGER sender_length BEFORE INSERT OR UPDATE OF sender ON organisations
    FOR EACH ROW
    WHEN (length(new.sender) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('sender', '1,000 characters');

-- coordinators: whoever looks after an organisation's mentors, and gets its digest.
CREATE TABLE coordinators (
    -- the app's user id; auth.uid() on Supabase
    id              uuid NOT NULL DEFAULT gen_random_uuid(),
    organisation_id uuid NOT NULL,
    full_name       text,
    email           text NOT NULL,
    locale          text NOT NULL DEFAULT 'nb',
    CONSTRAINT coordinators_pkey PRIMARY KEY (id),
    CONSTRAINT coordinators_organisation_id_fkey FOREIGN KEY (organisation_id) REFERENCES organisations(id),
    CONSTRAINT coordinators_email_check CHECK (email <> ''),
    CONSTRAINT coordinators_locale_check CHECK (locale IN ('nb', 'nn', 'en'))
);
CREATE UNIQUE INDEX coordinators_one_per_address ON coordinators (organisation_id, lower(email));
ALTER TABLE coordinators ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON coordinators TO authenticated;
GRANT SELECT, INSERT (id, organisation_id, full_name, email, locale), UPDATE (id, full_name, email, locale), DELETE
    ON coordinators TO certjob_worker;
CREATE POLICY "coordinators read their own" ON coordinators
    FOR SELECT TO authenticated
    USING (organisation_id = (SELECT certjob_private.coordinator_organisation_id()));
CREATE POLICY "worker works here" ON coordinators FOR ALL TO certjob_worker USING (true) WITH CHECK (true);
CREATE TRIGGER coordinator_updated AFTER UPDATE OF email ON coordinators
    FOR EACH ROW
    WHEN (old.email IS DISTINCT FROM new.email)
    EXECUTE FUNCTION certjob_private.coordinator_updated();
CREATE TRIGGER email_length BEFORE INSERT OR UPDATE OF email ON coordinators
    FOR EACH ROW
    WHEN (length(new.email) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('email', '1,000 characters');
CREATE TRIGGER full_name_length BEFORE INSERT OR UPDATE OF full_name ON coordinators
    FOR EACH ROW
    WHEN (length(new.full_name) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('full_name', '1,000 characters');

-- mentors: the volunteers.
CREATE TABLE mentors (
    id                  uuid        NOT NULL DEFAULT gen_random_uuid(),
    organisation_id     uuid        NOT NULL,
    member_no           text        NOT NULL,
    full_name           text,
    email               text,
    locale              text        NOT NULL DEFAULT 'nb',
    dynamics_contact_id uuid,
    left_at             timestamptz,
    -- derived: the last value wanted on the portal; null = push the next one whatever it is
    portal_visible      boolean     DEFAULT true,
    -- derived: the next date on which something can be due; -infinity = look now, infinity = never
    review_on           date        NOT NULL DEFAULT '-infinity',
    CONSTRAINT mentors_pkey PRIMARY KEY (id),
    CONSTRAINT mentors_organisation_id_member_no_key UNIQUE (organisation_id, member_no),
    CONSTRAINT mentors_organisation_id_fkey FOREIGN KEY (organisation_id) REFERENCES organisations(id),
    CONSTRAINT mentors_id_check CHECK (id <> '00000000-0000-0000-0000-000000000000'),
    CONSTRAINT mentors_locale_check CHECK (locale IN ('nb', 'nn', 'en')),
    CONSTRAINT mentors_member_no_check CHECK (member_no <> '')
);
CREATE UNIQUE INDEX mentors_one_per_contact ON mentors (organisation_id, dynamics_contact_id)
    WHERE (dynamics_contact_id IS NOT NULL);
CREATE INDEX mentors_review_on_id_idx ON mentors (review_on, id);
ALTER TABLE mentors ENABLE ROW LEVEL SECURITY;
GRANT SELECT, UPDATE (full_name, email, locale, dynamics_contact_id, left_at) ON mentors TO authenticated;
GRANT SELECT, INSERT (organisation_id, member_no, full_name, email, locale, dynamics_contact_id, left_at), UPDATE
    (full_name, email, locale, dynamics_contact_id, left_at, portal_visible, review_on)
    ON mentors TO certjob_worker;
CREATE POLICY "coordinators change their own" ON mentors
    FOR UPDATE TO authenticated
    USING (organisation_id = (SELECT certjob_private.coordinator_organisation_id()))
    WITH CHECK (organisation_id = (SELECT certjob_private.coordinator_organisation_id()) AND
        length(COALESCE(full_name, '')) <= 1000 AND length(COALESCE(email, '')) <= 1000);
CREATE POLICY "coordinators read their own" ON mentors
    FOR SELECT TO authenticated
    USING (organisation_id = (SELECT certjob_private.coordinator_organisation_id()));
CREATE POLICY "worker works here" ON mentors FOR ALL TO certjob_worker USING (true) WITH CHECK (true);
CREATE TRIGGER email_length BEFORE INSERT OR UPDATE OF email ON mentors
    FOR EACH ROW
    WHEN (length(new.email) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('email', '1,000 characters');
CREATE TRIGGER full_name_length BEFORE INSERT OR UPDATE OF full_name ON mentors
    FOR EACH ROW
    WHEN (length(new.full_name) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('full_name', '1,000 characters');
CREATE TRIGGER member_no_length BEFORE INSERT OR UPDATE OF member_no ON mentors
    FOR EACH ROW
    WHEN (length(new.member_no) > 200)
    EXECUTE FUNCTION certjob_private.refuse_long_value('member_no', '200 characters');
CREATE TRIGGER mentor_deleted BEFORE DELETE ON mentors FOR EACH ROW EXECUTE FUNCTION certjob_private.mentor_deleted();
CREATE TRIGGER mentor_updated BEFORE UPDATE OF left_at, email, organisation_id, dynamics_contact_id ON mentors
    FOR EACH ROW
    WHEN (old.left_at IS DISTINCT FROM new.left_at OR old.email IS DISTINCT FROM new.email OR old.organisation_id IS
        DISTINCT FROM new.organisation_id OR old.dynamics_contact_id IS DISTINCT FROM new.dynamics_contact_id)
    EXECUTE FUNCTION certjob_private.mentor_updated();
CREATE TRIGGER mentors_truncated BEFORE TRUNCATE ON mentors
    FOR EACH STATEMENT
    EXECUTE FUNCTION certjob_private.mentors_truncated();

-- certificates: what a mentor holds or has held: kind, first and last day; status is derived.
CREATE TABLE certificates (
    id         uuid        NOT NULL DEFAULT gen_random_uuid(),
    mentor_id  uuid        NOT NULL,
    kind       text        NOT NULL,
    issued_on  date        NOT NULL,
    expires_on date        NOT NULL,
    revoked_at timestamptz,
    status     text        NOT NULL DEFAULT 'recorded',
    CONSTRAINT certificates_pkey PRIMARY KEY (id),
    CONSTRAINT certificates_mentor_id_kind_issued_on_key UNIQUE (mentor_id, kind, issued_on),
    CONSTRAINT certificates_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE,
    CONSTRAINT certificates_dates_check CHECK (issued_on >= '0001-01-01' AND expires_on <= '9999-12-31'),
    CONSTRAINT certificates_expires_on_check CHECK (expires_on >= issued_on),
    CONSTRAINT certificates_kind_check CHECK (kind <> ''),
    CONSTRAINT certificates_status_check
        CHECK (status IN ('recorded', 'upcoming', 'valid', 'expiring', 'expired', 'renewed', 'revoked'))
);
CREATE INDEX certificates_expires_on_idx ON certificates (expires_on);
ALTER TABLE certificates ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT (id, mentor_id, kind, issued_on, expires_on, revoked_at), UPDATE (mentor_id, kind, issued_on,
    expires_on, revoked_at)
    ON certificates TO authenticated;
GRANT SELECT, INSERT (mentor_id, kind, issued_on, expires_on, revoked_at), UPDATE (expires_on, revoked_at, status)
    ON certificates TO certjob_worker;
CREATE POLICY "coordinators change their own" ON certificates
    FOR UPDATE TO authenticated
    USING (EXISTS (SELECT FROM mentors m WHERE m.id = certificates.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id())))
    WITH CHECK (EXISTS (SELECT FROM mentors m WHERE m.id = certificates.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id())));
CREATE POLICY "coordinators enter their own" ON certificates
    FOR INSERT TO authenticated
    WITH CHECK (EXISTS (SELECT FROM mentors m WHERE m.id = certificates.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id())));
CREATE POLICY "coordinators read their own" ON certificates
    FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM mentors m WHERE m.id = certificates.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id())));
CREATE POLICY "worker works here" ON certificates FOR ALL TO certjob_worker USING (true) WITH CHECK (true);
CREATE TRIGGER certificate_updated AFTER UPDATE OF mentor_id, kind, issued_on, expires_on, revoked_at ON certificates
    FOR EACH ROW
    WHEN (old.mentor_id IS DISTINCT FROM new.mentor_id OR old.kind IS DISTINCT FROM new.kind OR old.issued_on IS
        DISTINCT FROM new.issued_on OR old.expires_on IS DISTINCT FROM new.expires_on OR old.revoked_at IS DISTINCT
        FROM new.revoked_at)
    EXECUTE FUNCTION certjob_private.certificate_updated();
CREATE TRIGGER certificates_deleted AFTER DELETE ON certificates
    REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT
    EXECUTE FUNCTION certjob_private.certificates_inserted();
CREATE TRIGGER certificates_inserted AFTER INSERT ON certificates
    REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT
    EXECUTE FUNCTION certjob_private.certificates_inserted();
CREATE TRIGGER certificates_truncated AFTER TRUNCATE ON certificates
    FOR EACH STATEMENT
    EXECUTE FUNCTION certjob_private.facts_truncated();
CREATE TRIGGER kind_length BEFORE INSERT OR UPDATE OF kind ON certificates
    FOR EACH ROW
    WHEN (length(new.kind) > 200)
    EXECUTE FUNCTION certjob_private.refuse_long_value('kind', '200 characters');

-- mentor_pauses: who may not meet people, from when to when; those with the actor certjob are derived.
CREATE TABLE mentor_pauses (
    id        uuid        NOT NULL DEFAULT gen_random_uuid(),
    mentor_id uuid        NOT NULL,
    reason    text        NOT NULL,
    actor     text        NOT NULL,
    paused_at timestamptz NOT NULL DEFAULT now(),
    lifted_at timestamptz,
    lifted_by text,
    CONSTRAINT mentor_pauses_pkey PRIMARY KEY (id),
    CONSTRAINT mentor_pauses_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE,
    CONSTRAINT mentor_pauses_actor_check CHECK (actor <> ''),
    CONSTRAINT mentor_pauses_lifted_check
        CHECK ((lifted_by IS NULL OR lifted_at IS NOT NULL) AND (lifted_by IS DISTINCT FROM 'certjob' OR actor =
            'certjob')),
    CONSTRAINT mentor_pauses_own_check CHECK ((reason = 'certification_expired') = (actor = 'certjob')),
    CONSTRAINT mentor_pauses_reason_check CHECK (reason <> '')
);
CREATE INDEX mentor_pauses_mentor_id_idx ON mentor_pauses (mentor_id);
CREATE UNIQUE INDEX mentor_pauses_one_open_per_reason ON mentor_pauses (mentor_id, reason) WHERE (lifted_at IS NULL);
CREATE INDEX mentor_pauses_own_lifted_at_idx ON mentor_pauses (lifted_at)
    WHERE ((reason = 'certification_expired') AND (lifted_at IS NOT NULL));
CREATE INDEX mentor_pauses_own_paused_at_idx ON mentor_pauses (paused_at) WHERE (reason = 'certification_expired');
ALTER TABLE mentor_pauses ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT (id, mentor_id, reason, actor, paused_at), UPDATE (lifted_at, lifted_by)
    ON mentor_pauses TO authenticated;
GRANT SELECT, INSERT (mentor_id, reason, actor), UPDATE (lifted_at, lifted_by) ON mentor_pauses TO certjob_worker;
CREATE POLICY "coordinators lift their own" ON mentor_pauses
    FOR UPDATE TO authenticated
    USING (lifted_at IS NULL AND reason <> 'certification_expired' AND (EXISTS (SELECT FROM mentors m WHERE m.id =
        mentor_pauses.mentor_id AND m.organisation_id = (SELECT certjob_private.coordinator_organisation_id()))))
    WITH CHECK (lifted_by = ((SELECT auth.uid())::text) AND reason <> 'certification_expired' AND (EXISTS (SELECT FROM
        mentors m WHERE m.id = mentor_pauses.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id()))));
CREATE POLICY "coordinators open their own" ON mentor_pauses
    FOR INSERT TO authenticated
    WITH CHECK (actor = ((SELECT auth.uid())::text) AND reason <> 'certification_expired' AND (EXISTS (SELECT FROM
        mentors m WHERE m.id = mentor_pauses.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id()))));
CREATE POLICY "coordinators read their own" ON mentor_pauses
    FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM mentors m WHERE m.id = mentor_pauses.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id())));
CREATE POLICY "worker lifts its own" ON mentor_pauses
    AS RESTRICTIVE
    FOR UPDATE TO certjob_worker
    USING (true)
    WITH CHECK (actor = 'certjob');
CREATE POLICY "worker opens its own" ON mentor_pauses
    AS RESTRICTIVE
    FOR INSERT TO certjob_worker
    WITH CHECK (actor = 'certjob');
CREATE POLICY "worker works here" ON mentor_pauses FOR ALL TO certjob_worker USING (true) WITH CHECK (true);
CREATE TRIGGER actor_length BEFORE INSERT OR UPDATE OF actor ON mentor_pauses
    FOR EACH ROW
    WHEN (length(new.actor) > 200)
    EXECUTE FUNCTION certjob_private.refuse_long_value('actor', '200 characters');
CREATE TRIGGER lifted_by_length BEFORE INSERT OR UPDATE OF lifted_by ON mentor_pauses
    FOR EACH ROW
    WHEN (length(new.lifted_by) > 200)
    EXECUTE FUNCTION certjob_private.refuse_long_value('lifted_by', '200 characters');
CREATE TRIGGER pause_deleted AFTER DELETE ON mentor_pauses
    FOR EACH ROW
    WHEN (old.lifted_at IS NULL)
    EXECUTE FUNCTION certjob_private.pause_changed();
CREATE TRIGGER pause_opened AFTER INSERT ON mentor_pauses
    FOR EACH ROW
    WHEN (new.actor <> 'certjob')
    EXECUTE FUNCTION certjob_private.pause_changed();
CREATE TRIGGER pause_updated AFTER UPDATE OF mentor_id, reason, lifted_at ON mentor_pauses
    FOR EACH ROW
    WHEN (new.lifted_by IS DISTINCT FROM 'certjob' AND (old.mentor_id IS DISTINCT FROM new.mentor_id OR old.reason IS
        DISTINCT FROM new.reason OR old.lifted_at IS DISTINCT FROM new.lifted_at))
    EXECUTE FUNCTION certjob_private.pause_changed();
CREATE TRIGGER pauses_truncated AFTER TRUNCATE ON mentor_pauses
    FOR EACH STATEMENT
    EXECUTE FUNCTION certjob_private.facts_truncated();
CREATE TRIGGER reason_length BEFORE INSERT OR UPDATE OF reason ON mentor_pauses
    FOR EACH ROW
    WHEN (length(new.reason) > 200)
    EXECUTE FUNCTION certjob_private.refuse_long_value('reason', '200 characters');

CREATE FUNCTION certjob_private.refuse_long_value()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    RAISE EXCEPTION '%.% is too long, at most % are allowed', TG_TABLE_NAME, TG_ARGV[0], TG_ARGV[1]
        USING ERRCODE = 'string_data_right_truncation', TABLE = TG_TABLE_NAME, COLUMN = TG_ARGV[0],
              CONSTRAINT = format('certjob_%s_%s_length', TG_TABLE_NAME, TG_ARGV[0]);
END
$$;

CREATE FUNCTION certjob_private.organisation_updated()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO ''
AS $$
BEGIN
    -- In one order, so that it does not deadlock with bulk imports.
    PERFORM 1 FROM public.mentors WHERE organisation_id = NEW.id ORDER BY id FOR NO KEY UPDATE;
    UPDATE public.mentors
    SET review_on = '-infinity',
        portal_visible = CASE WHEN OLD.portal IS DISTINCT FROM NEW.portal THEN NULL ELSE portal_visible END
    WHERE organisation_id = NEW.id;
    RETURN NULL;
END
$$;

CREATE FUNCTION certjob_private.coordinator_updated()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO ''
AS $$
BEGIN
    UPDATE public.coordinator_digests
    SET status = 'pending', attempts = 0, next_attempt_at = now(), claim_token = NULL
    WHERE coordinator_id = NEW.id AND status = 'failed';
    RETURN NULL;
END
$$;

CREATE FUNCTION certjob_private.mentor_deleted()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO ''
AS $$
BEGIN
    -- A push that is blocked for want of a contact id has nothing to hide: it does not hold the deletion.
    IF EXISTS (
            SELECT FROM public.portal_sync_events
            WHERE mentor_id = OLD.id
                AND (status = 'pending' OR (status = 'blocked' AND OLD.dynamics_contact_id IS NOT NULL))
        )
        OR EXISTS (SELECT FROM public.cert_notification_log WHERE mentor_id = OLD.id AND status = 'pending')
    THEN
        RAISE EXCEPTION 'mentor % has open intents (a portal push or a reminder)', OLD.id
            USING ERRCODE = 'restrict_violation',
                  HINT = 'set left_at (and dynamics_contact_id to null if the contact is gone), let certjob run, then delete';
    END IF;
    IF EXISTS (
        SELECT FROM public.portal_sync_events
        WHERE mentor_id = OLD.id
            AND claim_token IS NOT NULL
            AND next_attempt_at > now()
            -- No lease is so long: it was written by a server whose clock was wrong.
            AND next_attempt_at <= now() + interval '25 hours'
    )
    THEN
        RAISE EXCEPTION 'a call to the portal may be under way for mentor %', OLD.id
            USING ERRCODE = 'restrict_violation',
                  HINT = 'delete in five minutes';
    END IF;
    IF OLD.portal_visible IS DISTINCT FROM false
        AND EXISTS (SELECT FROM public.organisations WHERE id = OLD.organisation_id AND portal IS NOT NULL)
    THEN
        RAISE EXCEPTION 'mentor % may still be shown on the portal', OLD.id
            USING ERRCODE = 'restrict_violation',
                  HINT = 'set left_at, let certjob run, then delete';
    END IF;
    RETURN OLD;
END
$$;

CREATE FUNCTION certjob_private.mentor_updated()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO ''
AS $$
BEGIN
    NEW.review_on := '-infinity';
    IF OLD.dynamics_contact_id IS DISTINCT FROM NEW.dynamics_contact_id THEN
        NEW.portal_visible := NULL;  -- nobody knows what the portal shows for the other contact
        IF NEW.dynamics_contact_id IS NOT NULL THEN
            UPDATE public.portal_sync_events
            SET version = version + 1,
                status = 'pending',
                attempts = 0,
                claim_token = CASE WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN claim_token END,
                next_attempt_at = CASE
                    WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN next_attempt_at ELSE now()
                END
            WHERE mentor_id = NEW.id AND status IN ('pending', 'blocked');
        END IF;
    END IF;
    IF OLD.email IS DISTINCT FROM NEW.email THEN
        UPDATE public.cert_notification_log
        SET status = 'pending', attempts = 0, next_attempt_at = now(), queued_at = now(), claim_token = NULL
        WHERE mentor_id = NEW.id AND status = 'failed';
    END IF;
    RETURN NEW;
END
$$;

CREATE FUNCTION certjob_private.mentors_truncated()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    IF EXISTS (
            SELECT
            FROM public.mentors AS m
            JOIN public.organisations AS o ON o.id = m.organisation_id
            WHERE o.portal IS NOT NULL AND m.portal_visible IS DISTINCT FROM false
        )
        OR EXISTS (SELECT FROM public.portal_sync_events WHERE status IN ('pending', 'blocked'))
        OR EXISTS (SELECT FROM public.cert_notification_log WHERE status = 'pending')
    THEN
        RAISE EXCEPTION 'some mentors may still be shown on the portal, or have open intents (a portal push or a reminder)'
            USING ERRCODE = 'restrict_violation',
                  HINT = 'set left_at for everybody, let certjob run, then truncate';
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION certjob_private.certificate_updated()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    PERFORM 1 FROM public.mentors WHERE id IN (OLD.mentor_id, NEW.mentor_id) ORDER BY id FOR NO KEY UPDATE;
    IF NEW.mentor_id <> OLD.mentor_id THEN
        PERFORM certjob_private.refuse_too_many_certificates(ARRAY[NEW.mentor_id]);
    END IF;
    UPDATE public.mentors SET review_on = '-infinity' WHERE id IN (OLD.mentor_id, NEW.mentor_id);
    RETURN NULL;
END
$$;

CREATE FUNCTION certjob_private.certificates_inserted()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    -- Locked in one order, so that two bulk imports do not deadlock.
    PERFORM 1 FROM public.mentors WHERE id IN (SELECT mentor_id FROM changed_rows) ORDER BY id FOR NO KEY UPDATE;
    IF TG_OP = 'INSERT' THEN
        PERFORM certjob_private.refuse_too_many_certificates(
            ARRAY(SELECT DISTINCT mentor_id FROM changed_rows)
        );
    END IF;
    UPDATE public.mentors SET review_on = '-infinity' WHERE id IN (SELECT mentor_id FROM changed_rows);
    RETURN NULL;
END
$$;

CREATE FUNCTION certjob_private.facts_truncated()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    PERFORM 1 FROM public.mentors ORDER BY id FOR NO KEY UPDATE;
    UPDATE public.mentors SET review_on = '-infinity';
    RETURN NULL;
END
$$;

CREATE FUNCTION certjob_private.pause_changed()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE public.mentors SET review_on = '-infinity' WHERE id = NEW.mentor_id;
    ELSIF TG_OP = 'DELETE' THEN
        UPDATE public.mentors SET review_on = '-infinity' WHERE id = OLD.mentor_id;
        RETURN NULL;
    ELSE
        PERFORM 1 FROM public.mentors WHERE id IN (OLD.mentor_id, NEW.mentor_id) ORDER BY id FOR NO KEY UPDATE;
        UPDATE public.mentors SET review_on = '-infinity' WHERE id IN (OLD.mentor_id, NEW.mentor_id);
    END IF;
    IF NEW.lifted_at IS NULL AND EXISTS (
        SELECT FROM public.mentor_pauses
        WHERE mentor_id = NEW.mentor_id AND lifted_at IS NULL AND reason <> 'certification_expired' OFFSET 200
    ) THEN
        RAISE EXCEPTION 'mentor % would have more than 200 open pauses', NEW.mentor_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'certjob_open_pauses_per_mentor';
    END IF;
    RETURN NULL;
END
$$;

----------------------------------------------------------------------------------------------------------------------
-- What certjob decided
----------------------------------------------------------------------------------------------------------------------

-- certificate_transitions: the audit: every change of a certificate's status.
CREATE TABLE certificate_transitions (
    id             bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    certificate_id uuid        NOT NULL,
    mentor_id      uuid        NOT NULL,
    from_status    text        NOT NULL,
    to_status      text        NOT NULL,
    as_of          date        NOT NULL,
    run_id         uuid,
    at             timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT certificate_transitions_pkey PRIMARY KEY (id),
    CONSTRAINT certificate_transitions_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE
);
CREATE INDEX certificate_transitions_mentor_id_idx ON certificate_transitions (mentor_id);
ALTER TABLE certificate_transitions ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON certificate_transitions TO authenticated;
GRANT SELECT, INSERT, DELETE ON certificate_transitions TO certjob_worker;
CREATE POLICY "coordinators read their own" ON certificate_transitions
    FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM mentors m WHERE m.id = certificate_transitions.mentor_id AND m.organisation_id =
        (SELECT certjob_private.coordinator_organisation_id())));
CREATE POLICY "worker works here" ON certificate_transitions FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

-- job_runs: the ledger of runs: every run has one row, whatever became of it.
CREATE TABLE job_runs (
    id           uuid        NOT NULL,
    command      text        NOT NULL,
    as_of        date        NOT NULL,
    organisation text,
    host         text        NOT NULL,
    version      text        NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    outcome      text,
    counts       jsonb       NOT NULL DEFAULT '{}',
    CONSTRAINT job_runs_pkey PRIMARY KEY (id),
    CONSTRAINT job_runs_outcome_check CHECK (outcome IN ('ok', 'attention', 'failed'))
);
CREATE INDEX job_runs_as_of_idx ON job_runs (as_of);
CREATE INDEX job_runs_finished_at_idx ON job_runs (finished_at) WHERE (finished_at IS NOT NULL);
ALTER TABLE job_runs ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON job_runs TO certjob_worker;
CREATE POLICY "worker works here" ON job_runs FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

----------------------------------------------------------------------------------------------------------------------
-- The portal
----------------------------------------------------------------------------------------------------------------------

-- portal_sync_events: the visibility to push: one open row per mentor at most, the newest value.
CREATE TABLE portal_sync_events (
    id                bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    mentor_id         uuid        NOT NULL,
    visible           boolean     NOT NULL,
    version           integer     NOT NULL DEFAULT 1,
    status            text        NOT NULL DEFAULT 'pending',
    -- rounds: how often the event was claimed and tried
    attempts          integer     NOT NULL DEFAULT 0,
    next_attempt_at   timestamptz NOT NULL DEFAULT now(),
    claim_token       uuid,
    wanted_at         timestamptz NOT NULL DEFAULT now(),
    delivered_at      timestamptz,
    last_error        text,
    run_id            uuid,
    -- the contact that the call in flight is for, as read by the claim
    claim_contact_id  uuid,
    -- why last_error; counts only beside a last_error
    failure_code      text,
    -- when a call to show ended whose outcome nobody knows
    unknown_shown_at  timestamptz,
    -- when a call to hide ended whose outcome nobody knows
    unknown_hidden_at timestamptz,
    -- the portal showed something else than certjob had confirmed: somebody had changed it there
    corrects_portal   boolean     NOT NULL DEFAULT false,
    CONSTRAINT portal_sync_events_pkey PRIMARY KEY (id),
    CONSTRAINT portal_sync_events_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE,
    CONSTRAINT portal_sync_events_attempts_check CHECK (attempts >= 0),
    CONSTRAINT portal_sync_events_status_check CHECK (status IN ('pending', 'delivered', 'blocked', 'withdrawn')),
    CONSTRAINT portal_sync_events_version_check CHECK (version >= 1)
);
CREATE INDEX portal_sync_events_corrections_idx ON portal_sync_events (delivered_at)
    WHERE (corrects_portal AND (status = 'delivered'));
CREATE INDEX portal_sync_events_due_idx ON portal_sync_events (((attempts > 0)), visible, next_attempt_at)
    WHERE (status = 'pending');
CREATE INDEX portal_sync_events_in_flight_idx ON portal_sync_events (claim_contact_id)
    WHERE (claim_token IS NOT NULL);
CREATE INDEX portal_sync_events_mentor_id_idx ON portal_sync_events (mentor_id);
CREATE UNIQUE INDEX portal_sync_events_one_open_per_mentor ON portal_sync_events (mentor_id)
    WHERE (status IN ('pending', 'blocked'));
CREATE INDEX portal_sync_events_unknown_idx ON portal_sync_events (claim_contact_id)
    WHERE ((unknown_shown_at IS NOT NULL) OR (unknown_hidden_at IS NOT NULL));
ALTER TABLE portal_sync_events ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON portal_sync_events TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON portal_sync_events TO certjob_worker;
CREATE POLICY "coordinators read their own" ON portal_sync_events
    FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM mentors m WHERE m.id = portal_sync_events.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id())));
CREATE POLICY "worker keeps what is open" ON portal_sync_events
    AS RESTRICTIVE
    FOR DELETE TO certjob_worker
    USING (status IN ('delivered', 'withdrawn'));
CREATE POLICY "worker works here" ON portal_sync_events FOR ALL TO certjob_worker USING (true) WITH CHECK (true);
CREATE TRIGGER portal_events_truncated BEFORE TRUNCATE ON portal_sync_events
    FOR EACH STATEMENT
    EXECUTE FUNCTION certjob_private.portal_events_truncated();

-- dynamics_sync_failures: pushes that failed: at most one row per mentor that no later success has resolved.
CREATE TABLE dynamics_sync_failures (
    id             bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    mentor_id      uuid        NOT NULL,
    event_id       bigint,
    visible        boolean     NOT NULL,
    kind           text        NOT NULL,
    -- calls made to the Edge Function
    attempts       integer     NOT NULL DEFAULT 0,
    error          text        NOT NULL,
    correlation_id text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    last_failed_at timestamptz NOT NULL DEFAULT now(),
    resolved_at    timestamptz,
    -- why the last round failed, or why the stage ended before it
    failure_code   text,
    CONSTRAINT dynamics_sync_failures_pkey PRIMARY KEY (id),
    CONSTRAINT dynamics_sync_failures_event_id_fkey
        FOREIGN KEY (event_id) REFERENCES portal_sync_events(id) ON DELETE SET NULL,
    CONSTRAINT dynamics_sync_failures_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE,
    CONSTRAINT dynamics_sync_failures_attempts_check CHECK (attempts >= 0),
    CONSTRAINT dynamics_sync_failures_kind_check CHECK (kind IN ('transient', 'permanent', 'stage'))
);
CREATE INDEX dynamics_sync_failures_event_id_idx ON dynamics_sync_failures (event_id);
CREATE INDEX dynamics_sync_failures_mentor_id_idx ON dynamics_sync_failures (mentor_id);
CREATE UNIQUE INDEX dynamics_sync_failures_one_unresolved_per_mentor ON dynamics_sync_failures (mentor_id)
    WHERE (resolved_at IS NULL);
ALTER TABLE dynamics_sync_failures ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON dynamics_sync_failures TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON dynamics_sync_failures TO certjob_worker;
CREATE POLICY "coordinators read their own" ON dynamics_sync_failures
    FOR SELECT TO authenticated
    USING (resolved_at IS NULL AND (EXISTS (SELECT FROM mentors m WHERE m.id = dynamics_sync_failures.mentor_id AND
        m.organisation_id = (SELECT certjob_private.coordinator_organisation_id()))));
CREATE POLICY "worker keeps what is open" ON dynamics_sync_failures
    AS RESTRICTIVE
    FOR DELETE TO certjob_worker
    USING (resolved_at IS NOT NULL);
CREATE POLICY "worker works here" ON dynamics_sync_failures FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

-- portal_last_reading: what `certjob reconcile` saw last: one row.
CREATE TABLE portal_last_reading (
    only_one      boolean     NOT NULL DEFAULT true,
    -- when the reading began; a later event may have changed what it saw
    read_at       timestamptz NOT NULL,
    pages         integer     NOT NULL,
    -- the contacts that the portal showed
    visible       uuid[]      NOT NULL,
    -- how many there were of each kind
    differences   jsonb       NOT NULL DEFAULT '{}',
    -- contacts that one organisation wants shown and another one hidden
    contradictory uuid[]      NOT NULL DEFAULT '{}'::uuid[],
    -- whether the guard held shows: the reading may be of a wrong column
    held          boolean     NOT NULL DEFAULT false,
    run_id        uuid,
    CONSTRAINT portal_last_reading_pkey PRIMARY KEY (only_one),
    CONSTRAINT portal_last_reading_only_one_check CHECK (only_one)
);
ALTER TABLE portal_last_reading ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE ON portal_last_reading TO certjob_worker;
CREATE POLICY "worker works here" ON portal_last_reading FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

-- portal_unknown_contacts: who is shown and is no mentor: until they are gone, or accepted.
CREATE TABLE portal_unknown_contacts (
    contact_id       uuid        NOT NULL,
    first_seen_at    timestamptz NOT NULL DEFAULT now(),
    last_seen_at     timestamptz NOT NULL DEFAULT now(),
    -- when a complete reading no longer showed it
    gone_at          timestamptz,
    -- somebody said that this contact is shown on purpose
    accepted_at      timestamptz,
    accepted_by      text,
    accepted_because text,
    CONSTRAINT portal_unknown_contacts_pkey PRIMARY KEY (contact_id),
    CONSTRAINT portal_unknown_contacts_accepted
        CHECK (num_nulls(accepted_at, accepted_by, accepted_because) IN (0, 3)),
    CONSTRAINT portal_unknown_contacts_accepted_because_check CHECK (length(accepted_because) <= 1000),
    CONSTRAINT portal_unknown_contacts_accepted_by_check CHECK (length(accepted_by) <= 200)
);
CREATE INDEX portal_unknown_contacts_open_idx ON portal_unknown_contacts (first_seen_at, contact_id)
    WHERE ((gone_at IS NULL) AND (accepted_at IS NULL));
ALTER TABLE portal_unknown_contacts ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON portal_unknown_contacts TO certjob_worker;
CREATE POLICY "worker works here" ON portal_unknown_contacts FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

-- portal_alerts: the pushes that coordinators must know of, for `certjob alerts` and the app's dashboard.
CREATE VIEW portal_alerts WITH (security_invoker=true) AS
 SELECT e.id AS event_id,
    e.mentor_id,
    m.organisation_id,
    m.member_no,
    COALESCE(m.full_name, m.member_no) AS full_name,
    e.visible,
        CASE
            WHEN e.visible THEN 'Dynamics sync pending — mentor may still be hidden on portal'
            ELSE 'Dynamics sync pending — mentor may still be visible on portal'
        END AS sentence,
    COALESCE(f.error, e.last_error) AS error,
    COALESCE(f.attempts, 0) AS attempts,
    e.wanted_at,
    f.last_failed_at,
        CASE
            WHEN f.id IS NOT NULL THEN f.failure_code
            WHEN e.last_error IS NOT NULL THEN e.failure_code
            ELSE NULL::text
        END AS code
   FROM portal_sync_events e
     JOIN mentors m ON m.id = e.mentor_id
     LEFT JOIN dynamics_sync_failures f ON f.mentor_id = e.mentor_id AND f.resolved_at IS NULL
  WHERE (e.status IN ('pending', 'blocked')) AND (f.id IS NOT NULL OR e.wanted_at < (now() - '01:00:00'::interval) OR
      e.wanted_at > (now() + '01:00:00'::interval))
  ORDER BY e.visible, e.wanted_at, e.id;
GRANT SELECT ON portal_alerts TO authenticated;
GRANT SELECT ON portal_alerts TO certjob_worker;

CREATE FUNCTION certjob_private.portal_events_truncated()
    RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    PERFORM 1
    FROM public.mentors
    WHERE id IN (SELECT mentor_id FROM public.portal_sync_events WHERE status IN ('pending', 'blocked'))
    ORDER BY id
    FOR NO KEY UPDATE;
    UPDATE public.mentors SET portal_visible = NULL, review_on = '-infinity'
    WHERE id IN (SELECT mentor_id FROM public.portal_sync_events WHERE status IN ('pending', 'blocked'));
    RETURN NULL;
END
$$;

----------------------------------------------------------------------------------------------------------------------
-- Mail
----------------------------------------------------------------------------------------------------------------------

-- cert_notification_log: the reminders: one row per mentor, threshold and certificate.
CREATE TABLE cert_notification_log (
    id              bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    mentor_id       uuid        NOT NULL,
    threshold_days  integer     NOT NULL,
    cert_id         uuid        NOT NULL,
    expires_on      date        NOT NULL,
    status          text        NOT NULL DEFAULT 'pending',
    attempts        integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claim_token     uuid,
    queued_at       timestamptz NOT NULL DEFAULT now(),
    sent_at         timestamptz,
    maybe_sent      boolean     NOT NULL DEFAULT false,
    last_error      text,
    history         jsonb       NOT NULL DEFAULT '[]',
    run_id          uuid,
    -- why last_error; null: cancelled, or never failed
    failure_code    text,
    CONSTRAINT cert_notification_log_pkey PRIMARY KEY (id),
    CONSTRAINT cert_notification_log_once UNIQUE (mentor_id, threshold_days, cert_id),
    CONSTRAINT cert_notification_log_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE,
    CONSTRAINT cert_notification_log_attempts_check CHECK (attempts >= 0),
    CONSTRAINT cert_notification_log_history_check CHECK (jsonb_typeof(history) = 'array'),
    CONSTRAINT cert_notification_log_status_check
        CHECK (status IN ('pending', 'sent', 'failed', 'cancelled', 'superseded'))
);
CREATE INDEX cert_notification_log_due_idx ON cert_notification_log (next_attempt_at, id) WHERE (status = 'pending');
CREATE INDEX cert_notification_log_failed_idx ON cert_notification_log (id) WHERE (status = 'failed');
ALTER TABLE cert_notification_log ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON cert_notification_log TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON cert_notification_log TO certjob_worker;
CREATE POLICY "coordinators read their own" ON cert_notification_log
    FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM mentors m WHERE m.id = cert_notification_log.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id())));
CREATE POLICY "worker keeps what is open" ON cert_notification_log
    AS RESTRICTIVE
    FOR DELETE TO certjob_worker
    USING (status IN ('sent', 'cancelled', 'superseded'));
CREATE POLICY "worker works here" ON cert_notification_log FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

-- coordinator_digests: the coordinators' daily mails: one row per coordinator and day.
CREATE TABLE coordinator_digests (
    id              bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    coordinator_id  uuid        NOT NULL,
    digest_on       date        NOT NULL,
    status          text        NOT NULL DEFAULT 'pending',
    attempts        integer     NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claim_token     uuid,
    covers_from     timestamptz,
    queued_at       timestamptz NOT NULL DEFAULT now(),
    sent_at         timestamptz,
    last_error      text,
    covers_until    timestamptz,
    -- the day as of which a sent one was written
    reported_on     date,
    -- everything that the coordinator knows once it was sent, by kind and id
    reported        text[]      NOT NULL DEFAULT '{}',
    -- the coordinator's sent ones in the order of sending, whatever clocks say
    sent_number     integer,
    maybe_sent      boolean     NOT NULL DEFAULT false,
    -- why last_error; null: cancelled, or never failed
    failure_code    text,
    CONSTRAINT coordinator_digests_pkey PRIMARY KEY (id),
    CONSTRAINT coordinator_digests_coordinator_id_fkey
        FOREIGN KEY (coordinator_id) REFERENCES coordinators(id) ON DELETE CASCADE,
    CONSTRAINT coordinator_digests_attempts_check CHECK (attempts >= 0),
    CONSTRAINT coordinator_digests_status_check
        CHECK (status IN ('pending', 'sent', 'failed', 'cancelled', 'superseded'))
);
CREATE INDEX coordinator_digests_due_idx ON coordinator_digests (next_attempt_at, id) WHERE (status = 'pending');
CREATE UNIQUE INDEX coordinator_digests_one_open ON coordinator_digests (coordinator_id)
    WHERE (status IN ('pending', 'failed', 'cancelled'));
CREATE INDEX coordinator_digests_sent_idx ON coordinator_digests (coordinator_id, sent_number DESC NULLS LAST)
    WHERE (status = 'sent');
ALTER TABLE coordinator_digests ENABLE ROW LEVEL SECURITY;
GRANT SELECT, INSERT, UPDATE, DELETE ON coordinator_digests TO certjob_worker;
CREATE POLICY "worker keeps what is open" ON coordinator_digests
    AS RESTRICTIVE
    FOR DELETE TO certjob_worker
    USING (status IN ('sent', 'cancelled', 'superseded'));
CREATE POLICY "worker works here" ON coordinator_digests FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

----------------------------------------------------------------------------------------------------------------------
-- What needs attention
----------------------------------------------------------------------------------------------------------------------

-- held_reviews: what the guards hold back for an organisation, until a run no longer holds it.
CREATE TABLE held_reviews (
    organisation_id   uuid        NOT NULL,
    what              text        NOT NULL,
    since             timestamptz NOT NULL DEFAULT now(),
    -- the day of the run that held it last
    as_of             date        NOT NULL,
    reason            text        NOT NULL,
    -- how many mentors would change
    mentors           integer     NOT NULL,
    -- of them, whose day had come although no fact was changed: their certificates have really ended
    ended_by_calendar integer     NOT NULL DEFAULT 0,
    -- of them, whose facts were changed since the last review: the import
    facts_changed     integer     NOT NULL DEFAULT 0,
    -- of them, who should be hidden, and whom the portal may still show
    may_be_shown      integer     NOT NULL DEFAULT 0,
    -- at most 50 of them, those who may be shown first
    mentor_ids        uuid[]      NOT NULL DEFAULT '{}'::uuid[],
    run_id            uuid,
    CONSTRAINT held_reviews_pkey PRIMARY KEY (organisation_id, what),
    CONSTRAINT held_reviews_what_check CHECK (what IN ('pauses', 'returns', 'reminders', 'portal'))
);
ALTER TABLE held_reviews ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON held_reviews TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON held_reviews TO certjob_worker;
CREATE POLICY "coordinators read their own" ON held_reviews
    FOR SELECT TO authenticated
    USING (organisation_id = (SELECT certjob_private.coordinator_organisation_id()));
CREATE POLICY "worker works here" ON held_reviews FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

-- review_problems: mentors whom a run could not review, until one does.
CREATE TABLE review_problems (
    mentor_id uuid        NOT NULL,
    reason    text        NOT NULL,
    since     timestamptz NOT NULL DEFAULT now(),
    -- the day of the run that found it last
    as_of     date        NOT NULL,
    run_id    uuid,
    CONSTRAINT review_problems_pkey PRIMARY KEY (mentor_id)
);
ALTER TABLE review_problems ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON review_problems TO authenticated;
GRANT SELECT, INSERT, UPDATE, DELETE ON review_problems TO certjob_worker;
CREATE POLICY "coordinators read their own" ON review_problems
    FOR SELECT TO authenticated
    USING (EXISTS (SELECT FROM mentors m WHERE m.id = review_problems.mentor_id AND m.organisation_id = (SELECT
        certjob_private.coordinator_organisation_id())));
CREATE POLICY "worker works here" ON review_problems FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

-- attention: one row for each thing that needs attention, for every command that reports any of it.
CREATE VIEW attention WITH (security_invoker=true) AS
 SELECT 'held' AS kind,
    h.organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    'held:' || h.what AS alert_id,
    h.since,
    NULL::date AS until
   FROM held_reviews h
     LEFT JOIN LATERAL (SELECT m.id
           FROM mentors m
          WHERE m.organisation_id = h.organisation_id AND m.review_on <= h.as_of
          ORDER BY m.review_on, m.id
         LIMIT 1) due ON true
  WHERE h.what = 'portal' OR due.id IS NOT NULL
UNION ALL
 SELECT 'never_reviewed' AS kind,
    m.organisation_id,
    p.mentor_id,
    NULL::bigint AS row_id,
    'problem:' || p.mentor_id AS alert_id,
    p.since,
    NULL::date AS until
   FROM review_problems p
     CROSS JOIN LATERAL (SELECT o.organisation_id
           FROM mentors o
          WHERE o.id = p.mentor_id AND o.review_on <= p.as_of
         OFFSET 0) m
UNION ALL
 SELECT 'may_be_visible' AS kind,
    a.organisation_id,
    a.mentor_id,
    a.event_id AS row_id,
    ('push:' || a.event_id) || ':false' AS alert_id,
    LEAST(a.wanted_at + '01:00:00'::interval, (SELECT f.created_at
           FROM dynamics_sync_failures f
          WHERE f.mentor_id = a.mentor_id AND f.resolved_at IS NULL)) AS since,
    NULL::date AS until
   FROM portal_alerts a
  WHERE NOT a.visible
UNION ALL
 SELECT 'contradictory' AS kind,
    NULL::uuid AS organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    'contradictory:' || c.contact_id AS alert_id,
    r.read_at AS since,
    NULL::date AS until
   FROM portal_last_reading r
     CROSS JOIN LATERAL unnest(r.contradictory) c(contact_id)
     CROSS JOIN LATERAL (SELECT bool_or(m.portal_visible) AND NOT bool_and(m.portal_visible) AS holds
           FROM organisations o
             JOIN mentors m ON m.organisation_id = o.id AND m.dynamics_contact_id = c.contact_id
          WHERE o.portal IS NOT NULL
         OFFSET 0) still
  WHERE still.holds
UNION ALL
 SELECT 'unknown_contacts' AS kind,
    NULL::uuid AS organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    'contact:' || u.contact_id AS alert_id,
    u.first_seen_at AS since,
    NULL::date AS until
   FROM portal_unknown_contacts u
  WHERE u.gone_at IS NULL AND u.accepted_at IS NULL
UNION ALL
 SELECT 'portal_not_read' AS kind,
    NULL::uuid AS organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    'reading' AS alert_id,
    r.read_at + '3 days'::interval AS since,
    NULL::date AS until
   FROM portal_last_reading r
  WHERE r.read_at < (now() - '3 days'::interval) AND (EXISTS (SELECT
           FROM organisations o
          WHERE o.portal IS NOT NULL))
UNION ALL
 SELECT 'may_be_hidden' AS kind,
    a.organisation_id,
    a.mentor_id,
    a.event_id AS row_id,
    ('push:' || a.event_id) || ':true' AS alert_id,
    LEAST(a.wanted_at + '01:00:00'::interval, (SELECT f.created_at
           FROM dynamics_sync_failures f
          WHERE f.mentor_id = a.mentor_id AND f.resolved_at IS NULL)) AS since,
    NULL::date AS until
   FROM portal_alerts a
  WHERE a.visible
UNION ALL
 SELECT 'failed_reminders' AS kind,
    m.organisation_id,
    l.mentor_id,
    l.id AS row_id,
    (('reminder:' || l.id) || ':') || l.queued_at::text AS alert_id,
    l.next_attempt_at AS since,
    GREATEST(l.expires_on - l.threshold_days, l.queued_at::date) + 14 AS until
   FROM cert_notification_log l
     CROSS JOIN LATERAL (SELECT o.organisation_id
           FROM mentors o
          WHERE o.id = l.mentor_id
         OFFSET 0) m
  WHERE l.status = 'failed'
UNION ALL
 SELECT
        CASE
            WHEN l.failure_code = 'deferred' THEN 'failed_reminders'
            ELSE 'waiting_reminders'
        END AS kind,
    m.organisation_id,
    l.mentor_id,
    l.id AS row_id,
    (('reminder:' || l.id) || ':') || l.queued_at::text AS alert_id,
    l.queued_at + '1 day'::interval AS since,
    NULL::date AS until
   FROM cert_notification_log l
     CROSS JOIN LATERAL (SELECT o.organisation_id
           FROM mentors o
          WHERE o.id = l.mentor_id
         OFFSET 0) m
  WHERE l.status = 'pending' AND l.queued_at < (now() - '1 day'::interval)
UNION ALL
 SELECT
        CASE d.status
            WHEN 'failed' THEN 'failed_digests'
            ELSE 'waiting_digests'
        END AS kind,
    c.organisation_id,
    NULL::uuid AS mentor_id,
    d.id AS row_id,
    (('digest:' || d.id) || ':') || d.digest_on AS alert_id,
        CASE d.status
            WHEN 'failed' THEN d.next_attempt_at
            ELSE d.queued_at + '1 day'::interval
        END AS since,
    NULL::date AS until
   FROM coordinator_digests d
     JOIN coordinators c ON c.id = d.coordinator_id
  WHERE d.status = 'failed' OR d.status = 'pending' AND d.queued_at < (now() - '1 day'::interval);
GRANT SELECT ON attention TO certjob_worker;

----------------------------------------------------------------------------------------------------------------------
-- The schema's own
----------------------------------------------------------------------------------------------------------------------

-- certjob_migrations: which migrations are applied.
CREATE TABLE certjob_migrations (
    version    integer     NOT NULL,
    name       text        NOT NULL,
    sha256     text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT certjob_migrations_pkey PRIMARY KEY (version)
);
ALTER TABLE certjob_migrations ENABLE ROW LEVEL SECURITY;
GRANT SELECT ON certjob_migrations TO certjob_worker;
CREATE POLICY "worker works here" ON certjob_migrations FOR ALL TO certjob_worker USING (true) WITH CHECK (true);

----------------------------------------------------------------------------------------------------------------------
-- What the app calls, and what policies ask
----------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION certjob_private.coordinator_organisation_id()
    RETURNS uuid LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
BEGIN
    RETURN (SELECT c.organisation_id FROM public.coordinators AS c WHERE c.id = (SELECT auth.uid()));
END
$$;
GRANT EXECUTE ON FUNCTION certjob_private.coordinator_organisation_id() TO authenticated;

CREATE FUNCTION certjob_private.refuse_too_many_certificates(mentor_ids uuid[])
    RETURNS void LANGUAGE plpgsql SET search_path TO 'pg_catalog', 'pg_temp'
AS $$
DECLARE
    crowded CONSTANT uuid := (
        SELECT given.id
        FROM unnest(mentor_ids) AS given (id)
        WHERE EXISTS (SELECT FROM public.certificates AS c WHERE c.mentor_id = given.id OFFSET 200)
        LIMIT 1
    );
BEGIN
    IF crowded IS NOT NULL THEN
        RAISE EXCEPTION 'mentor % would have more than 200 certificates', crowded
            USING ERRCODE = 'check_violation', CONSTRAINT = 'certjob_certificates_per_mentor';
    END IF;
END
$$;

-- for the app: makes the mentor's portal push due now; coordinators of the mentor's organisation only
CREATE FUNCTION public.request_portal_resync(mentor_id uuid, OUT event_id bigint, OUT event_version integer, OUT
    visible boolean, OUT in_flight boolean)
    RETURNS record LANGUAGE plpgsql SECURITY DEFINER SET search_path TO 'pg_catalog', 'pg_temp' SET "TimeZone" TO
        'UTC'
AS $$
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
GRANT EXECUTE ON FUNCTION request_portal_resync(uuid) TO authenticated;

-- These made the grants and policies above, see the migrations: certjob_private.ensure_policy,
-- certjob_private.set_up_app, certjob_private.set_up_attention, certjob_private.set_up_portal_reading,
-- certjob_private.set_up_roles, certjob_private.set_up_worker.

ALTER PUBLICATION supabase_realtime ADD TABLE dynamics_sync_failures;
