-- The schema as the migrations make it, for reading: no program runs this file. `make schema` writes it anew; a test
-- compares it with the migrations.
--
-- This is a database on Supabase; elsewhere the role authenticated does not exist. The rights of certjob_worker and of
-- the app are those that set_up_worker and set_up_app grant, at the end of this file.


CREATE SCHEMA certjob_private;

----------------------------------------------------------------------------------------------------------------------
-- Facts: the app, an import or a person writes them. certjob writes the columns that are called derived
----------------------------------------------------------------------------------------------------------------------

-- organisations: the member organisations, each with its portal and its rules for reminders.
CREATE TABLE organisations (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    slug text NOT NULL,
    name text NOT NULL,
    portal text,
    reminder_thresholds integer[] DEFAULT '{60,30,14,7,1,-1}'::integer[] NOT NULL,
    optional_kinds text[] DEFAULT '{}'::text[] NOT NULL,
    contact_email text,
    contact_phone text,
    renewal_url text,
    sender text,
    CONSTRAINT organisations_name_check CHECK ((name <> '')),
    CONSTRAINT organisations_optional_kinds_check CHECK ((array_position(optional_kinds, NULL::text) IS NULL)),
    CONSTRAINT organisations_portal_check CHECK ((portal = 'dynamics')),
    CONSTRAINT organisations_reminder_thresholds_check CHECK (((COALESCE(array_ndims(reminder_thresholds), 1) = 1) AND (cardinality(reminder_thresholds) <= 50) AND (array_position(reminder_thresholds, NULL::integer) IS NULL) AND ('-3650' <= ALL (reminder_thresholds)) AND (3650 >= ALL (reminder_thresholds)))),
    CONSTRAINT organisations_sender_check CHECK ((sender <> '')),
    CONSTRAINT organisations_slug_check CHECK ((slug ~ '^[a-z0-9][a-z0-9_-]{0,62}$'))
);
COMMENT ON COLUMN organisations.sender IS 'who its mails are from: an address, or a name and <address>; null: CERTJOB_MAIL_FROM';
ALTER TABLE organisations
    ADD CONSTRAINT organisations_pkey PRIMARY KEY (id);
ALTER TABLE organisations
    ADD CONSTRAINT organisations_slug_key UNIQUE (slug);
CREATE TRIGGER contact_email_length BEFORE INSERT OR UPDATE OF contact_email ON organisations FOR EACH ROW WHEN ((length(new.contact_email) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('contact_email', '1,000 characters');
CREATE TRIGGER contact_phone_length BEFORE INSERT OR UPDATE OF contact_phone ON organisations FOR EACH ROW WHEN ((length(new.contact_phone) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('contact_phone', '1,000 characters');
CREATE TRIGGER name_length BEFORE INSERT OR UPDATE OF name ON organisations FOR EACH ROW WHEN ((length(new.name) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('name', '1,000 characters');
CREATE TRIGGER optional_kinds_length BEFORE INSERT OR UPDATE OF optional_kinds ON organisations FOR EACH ROW WHEN ((length(array_to_string(new.optional_kinds, '')) > 10000)) EXECUTE FUNCTION certjob_private.refuse_long_value('optional_kinds', '10,000 characters');
CREATE TRIGGER organisation_updated AFTER UPDATE OF reminder_thresholds, optional_kinds, portal ON organisations FOR EACH ROW WHEN ((((old.reminder_thresholds IS DISTINCT FROM new.reminder_thresholds) OR (old.optional_kinds IS DISTINCT FROM new.optional_kinds)) OR (old.portal IS DISTINCT FROM new.portal))) EXECUTE FUNCTION certjob_private.organisation_updated();
CREATE TRIGGER renewal_url_length BEFORE INSERT OR UPDATE OF renewal_url ON organisations FOR EACH ROW WHEN ((length(new.renewal_url) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('renewal_url', '1,000 characters');
CREATE TRIGGER sender_length BEFORE INSERT OR UPDATE OF sender ON organisations FOR EACH ROW WHEN ((length(new.sender) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('sender', '1,000 characters');
CREATE POLICY "coordinators read their own" ON organisations FOR SELECT TO authenticated USING ((id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)));
ALTER TABLE organisations ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker works here" ON organisations TO certjob_worker USING (true) WITH CHECK (true);

-- coordinators: whoever looks after an organisation's mentors, and gets its digest.
CREATE TABLE coordinators (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organisation_id uuid NOT NULL,
    full_name text,
    email text NOT NULL,
    locale text DEFAULT 'nb' NOT NULL,
    CONSTRAINT coordinators_email_check CHECK ((email <> '')),
    CONSTRAINT coordinators_locale_check CHECK ((locale = ANY (ARRAY['nb', 'nn', 'en'])))
);
COMMENT ON COLUMN coordinators.id IS 'the app''s user id; auth.uid() on Supabase';
ALTER TABLE coordinators
    ADD CONSTRAINT coordinators_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX coordinators_one_per_address ON coordinators USING btree (organisation_id, lower(email));
CREATE TRIGGER coordinator_updated AFTER UPDATE OF email ON coordinators FOR EACH ROW WHEN ((old.email IS DISTINCT FROM new.email)) EXECUTE FUNCTION certjob_private.coordinator_updated();
CREATE TRIGGER email_length BEFORE INSERT OR UPDATE OF email ON coordinators FOR EACH ROW WHEN ((length(new.email) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('email', '1,000 characters');
CREATE TRIGGER full_name_length BEFORE INSERT OR UPDATE OF full_name ON coordinators FOR EACH ROW WHEN ((length(new.full_name) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('full_name', '1,000 characters');
ALTER TABLE coordinators
    ADD CONSTRAINT coordinators_organisation_id_fkey FOREIGN KEY (organisation_id) REFERENCES organisations(id);
ALTER TABLE coordinators ENABLE ROW LEVEL SECURITY;
CREATE POLICY "coordinators read their own" ON coordinators FOR SELECT TO authenticated USING ((organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)));
CREATE POLICY "worker works here" ON coordinators TO certjob_worker USING (true) WITH CHECK (true);

-- mentors: the volunteers.
CREATE TABLE mentors (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    organisation_id uuid NOT NULL,
    member_no text NOT NULL,
    full_name text,
    email text,
    locale text DEFAULT 'nb' NOT NULL,
    dynamics_contact_id uuid,
    left_at timestamp with time zone,
    portal_visible boolean DEFAULT true,
    review_on date DEFAULT '-infinity' NOT NULL,
    CONSTRAINT mentors_id_check CHECK ((id <> '00000000-0000-0000-0000-000000000000')),
    CONSTRAINT mentors_locale_check CHECK ((locale = ANY (ARRAY['nb', 'nn', 'en']))),
    CONSTRAINT mentors_member_no_check CHECK ((member_no <> ''))
);
COMMENT ON COLUMN mentors.portal_visible IS 'derived: the last value wanted on the portal; null = push the next one whatever it is';
COMMENT ON COLUMN mentors.review_on IS 'derived: the next date on which something can be due; -infinity = look now, infinity = never';
ALTER TABLE mentors
    ADD CONSTRAINT mentors_organisation_id_member_no_key UNIQUE (organisation_id, member_no);
ALTER TABLE mentors
    ADD CONSTRAINT mentors_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX mentors_one_per_contact ON mentors USING btree (organisation_id, dynamics_contact_id) WHERE (dynamics_contact_id IS NOT NULL);
CREATE INDEX mentors_review_on_id_idx ON mentors USING btree (review_on, id);
CREATE TRIGGER email_length BEFORE INSERT OR UPDATE OF email ON mentors FOR EACH ROW WHEN ((length(new.email) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('email', '1,000 characters');
CREATE TRIGGER full_name_length BEFORE INSERT OR UPDATE OF full_name ON mentors FOR EACH ROW WHEN ((length(new.full_name) > 1000)) EXECUTE FUNCTION certjob_private.refuse_long_value('full_name', '1,000 characters');
CREATE TRIGGER member_no_length BEFORE INSERT OR UPDATE OF member_no ON mentors FOR EACH ROW WHEN ((length(new.member_no) > 200)) EXECUTE FUNCTION certjob_private.refuse_long_value('member_no', '200 characters');
CREATE TRIGGER mentor_deleted BEFORE DELETE ON mentors FOR EACH ROW EXECUTE FUNCTION certjob_private.mentor_deleted();
CREATE TRIGGER mentor_updated BEFORE UPDATE OF left_at, email, organisation_id, dynamics_contact_id ON mentors FOR EACH ROW WHEN (((((old.left_at IS DISTINCT FROM new.left_at) OR (old.email IS DISTINCT FROM new.email)) OR (old.organisation_id IS DISTINCT FROM new.organisation_id)) OR (old.dynamics_contact_id IS DISTINCT FROM new.dynamics_contact_id))) EXECUTE FUNCTION certjob_private.mentor_updated();
CREATE TRIGGER mentors_truncated BEFORE TRUNCATE ON mentors FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.mentors_truncated();
ALTER TABLE mentors
    ADD CONSTRAINT mentors_organisation_id_fkey FOREIGN KEY (organisation_id) REFERENCES organisations(id);
CREATE POLICY "coordinators change their own" ON mentors FOR UPDATE TO authenticated USING ((organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))) WITH CHECK (((organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)) AND (length(COALESCE(full_name, '')) <= 1000) AND (length(COALESCE(email, '')) <= 1000)));
CREATE POLICY "coordinators read their own" ON mentors FOR SELECT TO authenticated USING ((organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)));
ALTER TABLE mentors ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker works here" ON mentors TO certjob_worker USING (true) WITH CHECK (true);

-- certificates: what a mentor holds or has held: kind, first and last day; status is derived.
CREATE TABLE certificates (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    mentor_id uuid NOT NULL,
    kind text NOT NULL,
    issued_on date NOT NULL,
    expires_on date NOT NULL,
    revoked_at timestamp with time zone,
    status text DEFAULT 'recorded' NOT NULL,
    CONSTRAINT certificates_dates_check CHECK (((issued_on >= '0001-01-01') AND (expires_on <= '9999-12-31'))),
    CONSTRAINT certificates_expires_on_check CHECK ((expires_on >= issued_on)),
    CONSTRAINT certificates_kind_check CHECK ((kind <> '')),
    CONSTRAINT certificates_status_check CHECK ((status = ANY (ARRAY['recorded', 'upcoming', 'valid', 'expiring', 'expired', 'renewed', 'revoked'])))
);
ALTER TABLE certificates
    ADD CONSTRAINT certificates_mentor_id_kind_issued_on_key UNIQUE (mentor_id, kind, issued_on);
ALTER TABLE certificates
    ADD CONSTRAINT certificates_pkey PRIMARY KEY (id);
CREATE INDEX certificates_expires_on_idx ON certificates USING btree (expires_on);
CREATE TRIGGER certificate_updated AFTER UPDATE OF mentor_id, kind, issued_on, expires_on, revoked_at ON certificates FOR EACH ROW WHEN ((((((old.mentor_id IS DISTINCT FROM new.mentor_id) OR (old.kind IS DISTINCT FROM new.kind)) OR (old.issued_on IS DISTINCT FROM new.issued_on)) OR (old.expires_on IS DISTINCT FROM new.expires_on)) OR (old.revoked_at IS DISTINCT FROM new.revoked_at))) EXECUTE FUNCTION certjob_private.certificate_updated();
CREATE TRIGGER certificates_deleted AFTER DELETE ON certificates REFERENCING OLD TABLE AS changed_rows FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.certificates_inserted();
CREATE TRIGGER certificates_inserted AFTER INSERT ON certificates REFERENCING NEW TABLE AS changed_rows FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.certificates_inserted();
CREATE TRIGGER certificates_truncated AFTER TRUNCATE ON certificates FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.facts_truncated();
CREATE TRIGGER kind_length BEFORE INSERT OR UPDATE OF kind ON certificates FOR EACH ROW WHEN ((length(new.kind) > 200)) EXECUTE FUNCTION certjob_private.refuse_long_value('kind', '200 characters');
ALTER TABLE certificates
    ADD CONSTRAINT certificates_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE;
ALTER TABLE certificates ENABLE ROW LEVEL SECURITY;
CREATE POLICY "coordinators change their own" ON certificates FOR UPDATE TO authenticated USING ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = certificates.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)))))) WITH CHECK ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = certificates.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))));
CREATE POLICY "coordinators enter their own" ON certificates FOR INSERT TO authenticated WITH CHECK ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = certificates.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))));
CREATE POLICY "coordinators read their own" ON certificates FOR SELECT TO authenticated USING ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = certificates.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))));
CREATE POLICY "worker works here" ON certificates TO certjob_worker USING (true) WITH CHECK (true);

-- mentor_pauses: who may not meet people, from when to when; those with the actor certjob are derived.
CREATE TABLE mentor_pauses (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    mentor_id uuid NOT NULL,
    reason text NOT NULL,
    actor text NOT NULL,
    paused_at timestamp with time zone DEFAULT now() NOT NULL,
    lifted_at timestamp with time zone,
    lifted_by text,
    CONSTRAINT mentor_pauses_actor_check CHECK ((actor <> '')),
    CONSTRAINT mentor_pauses_lifted_check CHECK ((((lifted_by IS NULL) OR (lifted_at IS NOT NULL)) AND ((lifted_by IS DISTINCT FROM 'certjob') OR (actor = 'certjob')))),
    CONSTRAINT mentor_pauses_own_check CHECK (((reason = 'certification_expired') = (actor = 'certjob'))),
    CONSTRAINT mentor_pauses_reason_check CHECK ((reason <> ''))
);
ALTER TABLE mentor_pauses
    ADD CONSTRAINT mentor_pauses_pkey PRIMARY KEY (id);
CREATE INDEX mentor_pauses_mentor_id_idx ON mentor_pauses USING btree (mentor_id);
CREATE UNIQUE INDEX mentor_pauses_one_open_per_reason ON mentor_pauses USING btree (mentor_id, reason) WHERE (lifted_at IS NULL);
CREATE INDEX mentor_pauses_own_lifted_at_idx ON mentor_pauses USING btree (lifted_at) WHERE ((reason = 'certification_expired') AND (lifted_at IS NOT NULL));
CREATE INDEX mentor_pauses_own_paused_at_idx ON mentor_pauses USING btree (paused_at) WHERE (reason = 'certification_expired');
CREATE TRIGGER actor_length BEFORE INSERT OR UPDATE OF actor ON mentor_pauses FOR EACH ROW WHEN ((length(new.actor) > 200)) EXECUTE FUNCTION certjob_private.refuse_long_value('actor', '200 characters');
CREATE TRIGGER lifted_by_length BEFORE INSERT OR UPDATE OF lifted_by ON mentor_pauses FOR EACH ROW WHEN ((length(new.lifted_by) > 200)) EXECUTE FUNCTION certjob_private.refuse_long_value('lifted_by', '200 characters');
CREATE TRIGGER pause_deleted AFTER DELETE ON mentor_pauses FOR EACH ROW WHEN ((old.lifted_at IS NULL)) EXECUTE FUNCTION certjob_private.pause_changed();
CREATE TRIGGER pause_opened AFTER INSERT ON mentor_pauses FOR EACH ROW WHEN ((new.actor <> 'certjob')) EXECUTE FUNCTION certjob_private.pause_changed();
CREATE TRIGGER pause_updated AFTER UPDATE OF mentor_id, reason, lifted_at ON mentor_pauses FOR EACH ROW WHEN (((new.lifted_by IS DISTINCT FROM 'certjob') AND (((old.mentor_id IS DISTINCT FROM new.mentor_id) OR (old.reason IS DISTINCT FROM new.reason)) OR (old.lifted_at IS DISTINCT FROM new.lifted_at)))) EXECUTE FUNCTION certjob_private.pause_changed();
CREATE TRIGGER pauses_truncated AFTER TRUNCATE ON mentor_pauses FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.facts_truncated();
CREATE TRIGGER reason_length BEFORE INSERT OR UPDATE OF reason ON mentor_pauses FOR EACH ROW WHEN ((length(new.reason) > 200)) EXECUTE FUNCTION certjob_private.refuse_long_value('reason', '200 characters');
ALTER TABLE mentor_pauses
    ADD CONSTRAINT mentor_pauses_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE;
CREATE POLICY "coordinators lift their own" ON mentor_pauses FOR UPDATE TO authenticated USING (((lifted_at IS NULL) AND (reason <> 'certification_expired') AND (EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = mentor_pauses.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))))) WITH CHECK (((lifted_by = (( SELECT auth.uid() AS uid))::text) AND (reason <> 'certification_expired') AND (EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = mentor_pauses.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)))))));
CREATE POLICY "coordinators open their own" ON mentor_pauses FOR INSERT TO authenticated WITH CHECK (((actor = (( SELECT auth.uid() AS uid))::text) AND (reason <> 'certification_expired') AND (EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = mentor_pauses.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)))))));
CREATE POLICY "coordinators read their own" ON mentor_pauses FOR SELECT TO authenticated USING ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = mentor_pauses.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))));
ALTER TABLE mentor_pauses ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker lifts its own" ON mentor_pauses AS RESTRICTIVE FOR UPDATE TO certjob_worker USING (true) WITH CHECK ((actor = 'certjob'));
CREATE POLICY "worker opens its own" ON mentor_pauses AS RESTRICTIVE FOR INSERT TO certjob_worker WITH CHECK ((actor = 'certjob'));
CREATE POLICY "worker works here" ON mentor_pauses TO certjob_worker USING (true) WITH CHECK (true);

----------------------------------------------------------------------------------------------------------------------
-- What certjob decided
----------------------------------------------------------------------------------------------------------------------

-- certificate_transitions: the audit: every change of a certificate's status.
CREATE TABLE certificate_transitions (
    id bigint NOT NULL,
    certificate_id uuid NOT NULL,
    mentor_id uuid NOT NULL,
    from_status text NOT NULL,
    to_status text NOT NULL,
    as_of date NOT NULL,
    run_id uuid,
    at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE certificate_transitions ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME certificate_transitions_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE certificate_transitions
    ADD CONSTRAINT certificate_transitions_pkey PRIMARY KEY (id);
CREATE INDEX certificate_transitions_mentor_id_idx ON certificate_transitions USING btree (mentor_id);
ALTER TABLE certificate_transitions
    ADD CONSTRAINT certificate_transitions_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE;
ALTER TABLE certificate_transitions ENABLE ROW LEVEL SECURITY;
CREATE POLICY "coordinators read their own" ON certificate_transitions FOR SELECT TO authenticated USING ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = certificate_transitions.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))));
CREATE POLICY "worker works here" ON certificate_transitions TO certjob_worker USING (true) WITH CHECK (true);

-- job_runs: the ledger of runs: every run has one row, whatever became of it.
CREATE TABLE job_runs (
    id uuid NOT NULL,
    command text NOT NULL,
    as_of date NOT NULL,
    organisation text,
    host text NOT NULL,
    version text NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    last_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    finished_at timestamp with time zone,
    outcome text,
    counts jsonb DEFAULT '{}' NOT NULL,
    CONSTRAINT job_runs_outcome_check CHECK ((outcome = ANY (ARRAY['ok', 'attention', 'failed'])))
);
ALTER TABLE job_runs
    ADD CONSTRAINT job_runs_pkey PRIMARY KEY (id);
CREATE INDEX job_runs_as_of_idx ON job_runs USING btree (as_of);
CREATE INDEX job_runs_finished_at_idx ON job_runs USING btree (finished_at) WHERE (finished_at IS NOT NULL);
ALTER TABLE job_runs ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker works here" ON job_runs TO certjob_worker USING (true) WITH CHECK (true);

----------------------------------------------------------------------------------------------------------------------
-- The portal
----------------------------------------------------------------------------------------------------------------------

-- portal_sync_events: the visibility to push: one open row per mentor at most, the newest value.
CREATE TABLE portal_sync_events (
    id bigint NOT NULL,
    mentor_id uuid NOT NULL,
    visible boolean NOT NULL,
    version integer DEFAULT 1 NOT NULL,
    status text DEFAULT 'pending' NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone DEFAULT now() NOT NULL,
    claim_token uuid,
    wanted_at timestamp with time zone DEFAULT now() NOT NULL,
    delivered_at timestamp with time zone,
    last_error text,
    run_id uuid,
    claim_contact_id uuid,
    failure_code text,
    unknown_shown_at timestamp with time zone,
    unknown_hidden_at timestamp with time zone,
    corrects_portal boolean DEFAULT false NOT NULL,
    CONSTRAINT portal_sync_events_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT portal_sync_events_status_check CHECK ((status = ANY (ARRAY['pending', 'delivered', 'blocked', 'withdrawn']))),
    CONSTRAINT portal_sync_events_version_check CHECK ((version >= 1))
);
COMMENT ON COLUMN portal_sync_events.attempts IS 'rounds: how often the event was claimed and tried';
COMMENT ON COLUMN portal_sync_events.claim_contact_id IS 'the contact that the call in flight is for, as read by the claim';
COMMENT ON COLUMN portal_sync_events.failure_code IS 'why last_error; counts only beside a last_error';
COMMENT ON COLUMN portal_sync_events.unknown_shown_at IS 'when a call to show ended whose outcome nobody knows';
COMMENT ON COLUMN portal_sync_events.unknown_hidden_at IS 'when a call to hide ended whose outcome nobody knows';
COMMENT ON COLUMN portal_sync_events.corrects_portal IS 'the portal showed something else than certjob had confirmed: somebody had changed it there';
ALTER TABLE portal_sync_events ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME portal_sync_events_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE portal_sync_events
    ADD CONSTRAINT portal_sync_events_pkey PRIMARY KEY (id);
CREATE INDEX portal_sync_events_corrections_idx ON portal_sync_events USING btree (delivered_at) WHERE (corrects_portal AND (status = 'delivered'));
CREATE INDEX portal_sync_events_due_idx ON portal_sync_events USING btree (((attempts > 0)), visible, next_attempt_at) WHERE (status = 'pending');
CREATE INDEX portal_sync_events_in_flight_idx ON portal_sync_events USING btree (claim_contact_id) WHERE (claim_token IS NOT NULL);
CREATE INDEX portal_sync_events_mentor_id_idx ON portal_sync_events USING btree (mentor_id);
CREATE UNIQUE INDEX portal_sync_events_one_open_per_mentor ON portal_sync_events USING btree (mentor_id) WHERE (status = ANY (ARRAY['pending', 'blocked']));
CREATE INDEX portal_sync_events_unknown_idx ON portal_sync_events USING btree (claim_contact_id) WHERE ((unknown_shown_at IS NOT NULL) OR (unknown_hidden_at IS NOT NULL));
CREATE TRIGGER portal_events_truncated BEFORE TRUNCATE ON portal_sync_events FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.portal_events_truncated();
ALTER TABLE portal_sync_events
    ADD CONSTRAINT portal_sync_events_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE;
CREATE POLICY "coordinators read their own" ON portal_sync_events FOR SELECT TO authenticated USING ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = portal_sync_events.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))));
ALTER TABLE portal_sync_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker keeps what is open" ON portal_sync_events AS RESTRICTIVE FOR DELETE TO certjob_worker USING ((status = ANY (ARRAY['delivered', 'withdrawn'])));
CREATE POLICY "worker works here" ON portal_sync_events TO certjob_worker USING (true) WITH CHECK (true);

-- dynamics_sync_failures: pushes that failed: at most one row per mentor that no later success has resolved.
CREATE TABLE dynamics_sync_failures (
    id bigint NOT NULL,
    mentor_id uuid NOT NULL,
    event_id bigint,
    visible boolean NOT NULL,
    kind text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    error text NOT NULL,
    correlation_id text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    last_failed_at timestamp with time zone DEFAULT now() NOT NULL,
    resolved_at timestamp with time zone,
    failure_code text,
    CONSTRAINT dynamics_sync_failures_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT dynamics_sync_failures_kind_check CHECK ((kind = ANY (ARRAY['transient', 'permanent', 'stage'])))
);
COMMENT ON COLUMN dynamics_sync_failures.attempts IS 'calls made to the Edge Function';
COMMENT ON COLUMN dynamics_sync_failures.failure_code IS 'why the last round failed, or why the stage ended before it';
ALTER TABLE dynamics_sync_failures ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME dynamics_sync_failures_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE dynamics_sync_failures
    ADD CONSTRAINT dynamics_sync_failures_pkey PRIMARY KEY (id);
CREATE INDEX dynamics_sync_failures_event_id_idx ON dynamics_sync_failures USING btree (event_id);
CREATE INDEX dynamics_sync_failures_mentor_id_idx ON dynamics_sync_failures USING btree (mentor_id);
CREATE UNIQUE INDEX dynamics_sync_failures_one_unresolved_per_mentor ON dynamics_sync_failures USING btree (mentor_id) WHERE (resolved_at IS NULL);
ALTER TABLE dynamics_sync_failures
    ADD CONSTRAINT dynamics_sync_failures_event_id_fkey FOREIGN KEY (event_id) REFERENCES portal_sync_events(id) ON DELETE SET NULL;
ALTER TABLE dynamics_sync_failures
    ADD CONSTRAINT dynamics_sync_failures_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE;
CREATE POLICY "coordinators read their own" ON dynamics_sync_failures FOR SELECT TO authenticated USING (((resolved_at IS NULL) AND (EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = dynamics_sync_failures.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)))))));
ALTER TABLE dynamics_sync_failures ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker keeps what is open" ON dynamics_sync_failures AS RESTRICTIVE FOR DELETE TO certjob_worker USING ((resolved_at IS NOT NULL));
CREATE POLICY "worker works here" ON dynamics_sync_failures TO certjob_worker USING (true) WITH CHECK (true);

-- portal_last_reading: what `certjob reconcile` saw last: one row.
CREATE TABLE portal_last_reading (
    only_one boolean DEFAULT true NOT NULL,
    read_at timestamp with time zone NOT NULL,
    pages integer NOT NULL,
    visible uuid[] NOT NULL,
    differences jsonb DEFAULT '{}' NOT NULL,
    contradictory uuid[] DEFAULT '{}'::uuid[] NOT NULL,
    held boolean DEFAULT false NOT NULL,
    run_id uuid,
    CONSTRAINT portal_last_reading_only_one_check CHECK (only_one)
);
COMMENT ON TABLE portal_last_reading IS 'the last complete reading of what the portal shows';
COMMENT ON COLUMN portal_last_reading.read_at IS 'when the reading began; a later event may have changed what it saw';
COMMENT ON COLUMN portal_last_reading.visible IS 'the contacts that the portal showed';
COMMENT ON COLUMN portal_last_reading.differences IS 'how many there were of each kind';
COMMENT ON COLUMN portal_last_reading.contradictory IS 'contacts that one organisation wants shown and another one hidden';
COMMENT ON COLUMN portal_last_reading.held IS 'whether the guard held shows: the reading may be of a wrong column';
ALTER TABLE portal_last_reading
    ADD CONSTRAINT portal_last_reading_pkey PRIMARY KEY (only_one);
ALTER TABLE portal_last_reading ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker works here" ON portal_last_reading TO certjob_worker USING (true) WITH CHECK (true);

-- portal_unknown_contacts: who is shown and is no mentor: until they are gone, or accepted.
CREATE TABLE portal_unknown_contacts (
    contact_id uuid NOT NULL,
    first_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    last_seen_at timestamp with time zone DEFAULT now() NOT NULL,
    gone_at timestamp with time zone,
    accepted_at timestamp with time zone,
    accepted_by text,
    accepted_because text,
    CONSTRAINT portal_unknown_contacts_accepted CHECK ((num_nulls(accepted_at, accepted_by, accepted_because) = ANY (ARRAY[0, 3]))),
    CONSTRAINT portal_unknown_contacts_accepted_because_check CHECK ((length(accepted_because) <= 1000)),
    CONSTRAINT portal_unknown_contacts_accepted_by_check CHECK ((length(accepted_by) <= 200))
);
COMMENT ON TABLE portal_unknown_contacts IS 'contacts that the portal shows and that belong to no mentor of an organisation with a portal';
COMMENT ON COLUMN portal_unknown_contacts.gone_at IS 'when a complete reading no longer showed it';
COMMENT ON COLUMN portal_unknown_contacts.accepted_at IS 'somebody said that this contact is shown on purpose';
ALTER TABLE portal_unknown_contacts
    ADD CONSTRAINT portal_unknown_contacts_pkey PRIMARY KEY (contact_id);
CREATE INDEX portal_unknown_contacts_open_idx ON portal_unknown_contacts USING btree (first_seen_at, contact_id) WHERE ((gone_at IS NULL) AND (accepted_at IS NULL));
ALTER TABLE portal_unknown_contacts ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker works here" ON portal_unknown_contacts TO certjob_worker USING (true) WITH CHECK (true);

-- portal_alerts: the pushes that coordinators must know of, for `certjob alerts` and the app's dashboard.
CREATE VIEW portal_alerts WITH (security_invoker='true') AS
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
            WHEN (f.id IS NOT NULL) THEN f.failure_code
            WHEN (e.last_error IS NOT NULL) THEN e.failure_code
            ELSE NULL::text
        END AS code
   FROM ((portal_sync_events e
     JOIN mentors m ON ((m.id = e.mentor_id)))
     LEFT JOIN dynamics_sync_failures f ON (((f.mentor_id = e.mentor_id) AND (f.resolved_at IS NULL))))
  WHERE ((e.status = ANY (ARRAY['pending', 'blocked'])) AND ((f.id IS NOT NULL) OR (e.wanted_at < (now() - '01:00:00'::interval)) OR (e.wanted_at > (now() + '01:00:00'::interval))))
  ORDER BY e.visible, e.wanted_at, e.id;

----------------------------------------------------------------------------------------------------------------------
-- Mail
----------------------------------------------------------------------------------------------------------------------

-- cert_notification_log: the reminders: one row per mentor, threshold and certificate.
CREATE TABLE cert_notification_log (
    id bigint NOT NULL,
    mentor_id uuid NOT NULL,
    threshold_days integer NOT NULL,
    cert_id uuid NOT NULL,
    expires_on date NOT NULL,
    status text DEFAULT 'pending' NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone DEFAULT now() NOT NULL,
    claim_token uuid,
    queued_at timestamp with time zone DEFAULT now() NOT NULL,
    sent_at timestamp with time zone,
    maybe_sent boolean DEFAULT false NOT NULL,
    last_error text,
    history jsonb DEFAULT '[]' NOT NULL,
    run_id uuid,
    failure_code text,
    CONSTRAINT cert_notification_log_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT cert_notification_log_history_check CHECK ((jsonb_typeof(history) = 'array')),
    CONSTRAINT cert_notification_log_status_check CHECK ((status = ANY (ARRAY['pending', 'sent', 'failed', 'cancelled', 'superseded'])))
);
COMMENT ON COLUMN cert_notification_log.failure_code IS 'why last_error; null: cancelled, or never failed';
ALTER TABLE cert_notification_log ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME cert_notification_log_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE cert_notification_log
    ADD CONSTRAINT cert_notification_log_once UNIQUE (mentor_id, threshold_days, cert_id);
ALTER TABLE cert_notification_log
    ADD CONSTRAINT cert_notification_log_pkey PRIMARY KEY (id);
CREATE INDEX cert_notification_log_due_idx ON cert_notification_log USING btree (next_attempt_at, id) WHERE (status = 'pending');
CREATE INDEX cert_notification_log_failed_idx ON cert_notification_log USING btree (id) WHERE (status = 'failed');
ALTER TABLE cert_notification_log
    ADD CONSTRAINT cert_notification_log_mentor_id_fkey FOREIGN KEY (mentor_id) REFERENCES mentors(id) ON DELETE CASCADE;
ALTER TABLE cert_notification_log ENABLE ROW LEVEL SECURITY;
CREATE POLICY "coordinators read their own" ON cert_notification_log FOR SELECT TO authenticated USING ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = cert_notification_log.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))));
CREATE POLICY "worker keeps what is open" ON cert_notification_log AS RESTRICTIVE FOR DELETE TO certjob_worker USING ((status = ANY (ARRAY['sent', 'cancelled', 'superseded'])));
CREATE POLICY "worker works here" ON cert_notification_log TO certjob_worker USING (true) WITH CHECK (true);

-- coordinator_digests: the coordinators' daily mails: one row per coordinator and day.
CREATE TABLE coordinator_digests (
    id bigint NOT NULL,
    coordinator_id uuid NOT NULL,
    digest_on date NOT NULL,
    status text DEFAULT 'pending' NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone DEFAULT now() NOT NULL,
    claim_token uuid,
    covers_from timestamp with time zone,
    queued_at timestamp with time zone DEFAULT now() NOT NULL,
    sent_at timestamp with time zone,
    last_error text,
    covers_until timestamp with time zone,
    reported_on date,
    reported text[] DEFAULT '{}'::text[] CONSTRAINT coordinator_digests_told_not_null NOT NULL,
    sent_number integer,
    maybe_sent boolean DEFAULT false NOT NULL,
    failure_code text,
    CONSTRAINT coordinator_digests_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT coordinator_digests_status_check CHECK ((status = ANY (ARRAY['pending', 'sent', 'failed', 'cancelled', 'superseded'])))
);
COMMENT ON COLUMN coordinator_digests.reported_on IS 'the day as of which a sent one was written';
COMMENT ON COLUMN coordinator_digests.reported IS 'everything that the coordinator knows once it was sent, by kind and id';
COMMENT ON COLUMN coordinator_digests.sent_number IS 'the coordinator''s sent ones in the order of sending, whatever clocks say';
COMMENT ON COLUMN coordinator_digests.failure_code IS 'why last_error; null: cancelled, or never failed';
ALTER TABLE coordinator_digests ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME coordinator_digests_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
ALTER TABLE coordinator_digests
    ADD CONSTRAINT coordinator_digests_pkey PRIMARY KEY (id);
CREATE INDEX coordinator_digests_due_idx ON coordinator_digests USING btree (next_attempt_at, id) WHERE (status = 'pending');
CREATE UNIQUE INDEX coordinator_digests_one_open ON coordinator_digests USING btree (coordinator_id) WHERE (status = ANY (ARRAY['pending', 'failed', 'cancelled']));
CREATE INDEX coordinator_digests_sent_idx ON coordinator_digests USING btree (coordinator_id, sent_number DESC NULLS LAST) WHERE (status = 'sent');
ALTER TABLE coordinator_digests
    ADD CONSTRAINT coordinator_digests_coordinator_id_fkey FOREIGN KEY (coordinator_id) REFERENCES coordinators(id) ON DELETE CASCADE;
ALTER TABLE coordinator_digests ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker keeps what is open" ON coordinator_digests AS RESTRICTIVE FOR DELETE TO certjob_worker USING ((status = ANY (ARRAY['sent', 'cancelled', 'superseded'])));
CREATE POLICY "worker works here" ON coordinator_digests TO certjob_worker USING (true) WITH CHECK (true);

----------------------------------------------------------------------------------------------------------------------
-- What needs attention
----------------------------------------------------------------------------------------------------------------------

-- held_reviews: what the guards hold back for an organisation, until a run no longer holds it.
CREATE TABLE held_reviews (
    organisation_id uuid NOT NULL,
    what text NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL,
    as_of date NOT NULL,
    reason text NOT NULL,
    mentors integer NOT NULL,
    ended_by_calendar integer DEFAULT 0 NOT NULL,
    facts_changed integer DEFAULT 0 NOT NULL,
    may_be_shown integer DEFAULT 0 NOT NULL,
    mentor_ids uuid[] DEFAULT '{}'::uuid[] NOT NULL,
    run_id uuid,
    CONSTRAINT held_reviews_what_check CHECK ((what = ANY (ARRAY['pauses', 'returns', 'reminders', 'portal'])))
);
COMMENT ON TABLE held_reviews IS 'what the guards hold back for an organisation, counted when it was held; gone once a run no longer holds it';
COMMENT ON COLUMN held_reviews.as_of IS 'the day of the run that held it last';
COMMENT ON COLUMN held_reviews.mentors IS 'how many mentors would change';
COMMENT ON COLUMN held_reviews.ended_by_calendar IS 'of them, whose day had come although no fact was changed: their certificates have really ended';
COMMENT ON COLUMN held_reviews.facts_changed IS 'of them, whose facts were changed since the last review: the import';
COMMENT ON COLUMN held_reviews.may_be_shown IS 'of them, who should be hidden, and whom the portal may still show';
COMMENT ON COLUMN held_reviews.mentor_ids IS 'at most 50 of them, those who may be shown first';
ALTER TABLE held_reviews
    ADD CONSTRAINT held_reviews_pkey PRIMARY KEY (organisation_id, what);
CREATE POLICY "coordinators read their own" ON held_reviews FOR SELECT TO authenticated USING ((organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id)));
ALTER TABLE held_reviews ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker works here" ON held_reviews TO certjob_worker USING (true) WITH CHECK (true);

-- review_problems: mentors whom a run could not review, until one does.
CREATE TABLE review_problems (
    mentor_id uuid NOT NULL,
    reason text NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL,
    as_of date NOT NULL,
    run_id uuid
);
COMMENT ON TABLE review_problems IS 'mentors whom a run found broken or had to skip; gone once a run or a resync has reviewed them';
COMMENT ON COLUMN review_problems.as_of IS 'the day of the run that found it last';
ALTER TABLE review_problems
    ADD CONSTRAINT review_problems_pkey PRIMARY KEY (mentor_id);
CREATE POLICY "coordinators read their own" ON review_problems FOR SELECT TO authenticated USING ((EXISTS ( SELECT
   FROM mentors m
  WHERE ((m.id = review_problems.mentor_id) AND (m.organisation_id = ( SELECT certjob_private.coordinator_organisation_id() AS coordinator_organisation_id))))));
ALTER TABLE review_problems ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker works here" ON review_problems TO certjob_worker USING (true) WITH CHECK (true);

-- attention: one row for each thing that needs attention, for every command that reports any of it.
CREATE VIEW attention WITH (security_invoker='true') AS
 SELECT 'held' AS kind,
    h.organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    ('held:' || h.what) AS alert_id,
    h.since,
    NULL::date AS until
   FROM (held_reviews h
     LEFT JOIN LATERAL ( SELECT m.id
           FROM mentors m
          WHERE ((m.organisation_id = h.organisation_id) AND (m.review_on <= h.as_of))
          ORDER BY m.review_on, m.id
         LIMIT 1) due ON (true))
  WHERE ((h.what = 'portal') OR (due.id IS NOT NULL))
UNION ALL
 SELECT 'never_reviewed' AS kind,
    m.organisation_id,
    p.mentor_id,
    NULL::bigint AS row_id,
    ('problem:' || p.mentor_id) AS alert_id,
    p.since,
    NULL::date AS until
   FROM (review_problems p
     CROSS JOIN LATERAL ( SELECT o.organisation_id
           FROM mentors o
          WHERE ((o.id = p.mentor_id) AND (o.review_on <= p.as_of))
         OFFSET 0) m)
UNION ALL
 SELECT 'may_be_visible' AS kind,
    a.organisation_id,
    a.mentor_id,
    a.event_id AS row_id,
    (('push:' || a.event_id) || ':false') AS alert_id,
    LEAST((a.wanted_at + '01:00:00'::interval), ( SELECT f.created_at
           FROM dynamics_sync_failures f
          WHERE ((f.mentor_id = a.mentor_id) AND (f.resolved_at IS NULL)))) AS since,
    NULL::date AS until
   FROM portal_alerts a
  WHERE (NOT a.visible)
UNION ALL
 SELECT 'contradictory' AS kind,
    NULL::uuid AS organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    ('contradictory:' || c.contact_id) AS alert_id,
    r.read_at AS since,
    NULL::date AS until
   FROM ((portal_last_reading r
     CROSS JOIN LATERAL unnest(r.contradictory) c(contact_id))
     CROSS JOIN LATERAL ( SELECT (bool_or(m.portal_visible) AND (NOT bool_and(m.portal_visible))) AS holds
           FROM (organisations o
             JOIN mentors m ON (((m.organisation_id = o.id) AND (m.dynamics_contact_id = c.contact_id))))
          WHERE (o.portal IS NOT NULL)
         OFFSET 0) still)
  WHERE still.holds
UNION ALL
 SELECT 'unknown_contacts' AS kind,
    NULL::uuid AS organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    ('contact:' || u.contact_id) AS alert_id,
    u.first_seen_at AS since,
    NULL::date AS until
   FROM portal_unknown_contacts u
  WHERE ((u.gone_at IS NULL) AND (u.accepted_at IS NULL))
UNION ALL
 SELECT 'portal_not_read' AS kind,
    NULL::uuid AS organisation_id,
    NULL::uuid AS mentor_id,
    NULL::bigint AS row_id,
    'reading' AS alert_id,
    (r.read_at + '3 days'::interval) AS since,
    NULL::date AS until
   FROM portal_last_reading r
  WHERE ((r.read_at < (now() - '3 days'::interval)) AND (EXISTS ( SELECT
           FROM organisations o
          WHERE (o.portal IS NOT NULL))))
UNION ALL
 SELECT 'may_be_hidden' AS kind,
    a.organisation_id,
    a.mentor_id,
    a.event_id AS row_id,
    (('push:' || a.event_id) || ':true') AS alert_id,
    LEAST((a.wanted_at + '01:00:00'::interval), ( SELECT f.created_at
           FROM dynamics_sync_failures f
          WHERE ((f.mentor_id = a.mentor_id) AND (f.resolved_at IS NULL)))) AS since,
    NULL::date AS until
   FROM portal_alerts a
  WHERE a.visible
UNION ALL
 SELECT 'failed_reminders' AS kind,
    m.organisation_id,
    l.mentor_id,
    l.id AS row_id,
    ((('reminder:' || l.id) || ':') || (l.queued_at)::text) AS alert_id,
    l.next_attempt_at AS since,
    (GREATEST((l.expires_on - l.threshold_days), (l.queued_at)::date) + 14) AS until
   FROM (cert_notification_log l
     CROSS JOIN LATERAL ( SELECT o.organisation_id
           FROM mentors o
          WHERE (o.id = l.mentor_id)
         OFFSET 0) m)
  WHERE (l.status = 'failed')
UNION ALL
 SELECT
        CASE
            WHEN (l.failure_code = 'deferred') THEN 'failed_reminders'
            ELSE 'waiting_reminders'
        END AS kind,
    m.organisation_id,
    l.mentor_id,
    l.id AS row_id,
    ((('reminder:' || l.id) || ':') || (l.queued_at)::text) AS alert_id,
    (l.queued_at + '1 day'::interval) AS since,
    NULL::date AS until
   FROM (cert_notification_log l
     CROSS JOIN LATERAL ( SELECT o.organisation_id
           FROM mentors o
          WHERE (o.id = l.mentor_id)
         OFFSET 0) m)
  WHERE ((l.status = 'pending') AND (l.queued_at < (now() - '1 day'::interval)))
UNION ALL
 SELECT
        CASE d.status
            WHEN 'failed' THEN 'failed_digests'
            ELSE 'waiting_digests'
        END AS kind,
    c.organisation_id,
    NULL::uuid AS mentor_id,
    d.id AS row_id,
    ((('digest:' || d.id) || ':') || d.digest_on) AS alert_id,
        CASE d.status
            WHEN 'failed' THEN d.next_attempt_at
            ELSE (d.queued_at + '1 day'::interval)
        END AS since,
    NULL::date AS until
   FROM (coordinator_digests d
     JOIN coordinators c ON ((c.id = d.coordinator_id)))
  WHERE ((d.status = 'failed') OR ((d.status = 'pending') AND (d.queued_at < (now() - '1 day'::interval))));

----------------------------------------------------------------------------------------------------------------------
-- The schema's own
----------------------------------------------------------------------------------------------------------------------

-- certjob_migrations: which migrations are applied.
CREATE TABLE certjob_migrations (
    version integer NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    applied_at timestamp with time zone DEFAULT now() NOT NULL
);
ALTER TABLE certjob_migrations
    ADD CONSTRAINT certjob_migrations_pkey PRIMARY KEY (version);
ALTER TABLE certjob_migrations ENABLE ROW LEVEL SECURITY;
CREATE POLICY "worker works here" ON certjob_migrations TO certjob_worker USING (true) WITH CHECK (true);

----------------------------------------------------------------------------------------------------------------------
-- Functions: what the triggers do, what the app calls, and what makes the rights
----------------------------------------------------------------------------------------------------------------------

CREATE FUNCTION certjob_private.certificate_updated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION certjob_private.certificates_inserted() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION certjob_private.coordinator_organisation_id() RETURNS uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RETURN (SELECT c.organisation_id FROM public.coordinators AS c WHERE c.id = (SELECT auth.uid()));
END
$$;

CREATE FUNCTION certjob_private.coordinator_updated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
    AS $$
BEGIN
    UPDATE public.coordinator_digests
    SET status = 'pending', attempts = 0, next_attempt_at = now(), claim_token = NULL
    WHERE coordinator_id = NEW.id AND status = 'failed';
    RETURN NULL;
END
$$;

CREATE FUNCTION certjob_private.ensure_policy(name text, on_table text, rest text) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_policies AS p
        WHERE p.schemaname = 'public' AND p.tablename = on_table AND p.policyname = name
    ) THEN
        EXECUTE format('CREATE POLICY %I ON public.%I %s', name, on_table, rest);
    END IF;
END
$$;

CREATE FUNCTION certjob_private.facts_truncated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    PERFORM 1 FROM public.mentors ORDER BY id FOR NO KEY UPDATE;
    UPDATE public.mentors SET review_on = '-infinity';
    RETURN NULL;
END
$$;

CREATE FUNCTION certjob_private.mentor_deleted() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
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

CREATE FUNCTION certjob_private.mentor_updated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
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

CREATE FUNCTION certjob_private.mentors_truncated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION certjob_private.organisation_updated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO ''
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

CREATE FUNCTION certjob_private.pause_changed() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION certjob_private.portal_events_truncated() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION certjob_private.refuse_long_value() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
BEGIN
    RAISE EXCEPTION '%.% is too long, at most % are allowed', TG_TABLE_NAME, TG_ARGV[0], TG_ARGV[1]
        USING ERRCODE = 'string_data_right_truncation', TABLE = TG_TABLE_NAME, COLUMN = TG_ARGV[0],
              CONSTRAINT = format('certjob_%s_%s_length', TG_TABLE_NAME, TG_ARGV[0]);
END
$$;

CREATE FUNCTION certjob_private.refuse_too_many_certificates(mentor_ids uuid[]) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'pg_catalog', 'pg_temp'
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

CREATE FUNCTION certjob_private.set_up_app() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $_$
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
$_$;

CREATE FUNCTION certjob_private.set_up_attention() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $_$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT 'PUBLIC' UNION ALL
        SELECT quote_ident(rolname) FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated')
    LOOP
        EXECUTE format('REVOKE ALL ON public.held_reviews, public.review_problems, public.attention FROM %s', grantee);
    END LOOP;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'certjob_worker') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON public.held_reviews, public.review_problems TO certjob_worker;
        GRANT SELECT ON public.attention TO certjob_worker;
        PERFORM certjob_private.ensure_policy('worker works here', each_table,
                'TO certjob_worker USING (true) WITH CHECK (true)')
            FROM unnest(ARRAY['held_reviews', 'review_problems']) AS each_table;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'authenticated')
        AND EXISTS (
            SELECT FROM pg_catalog.pg_proc AS p
            JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
            WHERE n.nspname = 'auth' AND p.proname = 'uid' AND p.pronargs = 0
        )
    THEN
        GRANT SELECT ON public.held_reviews, public.review_problems TO authenticated;
        PERFORM certjob_private.ensure_policy('coordinators read their own', 'held_reviews',
            'FOR SELECT TO authenticated USING (organisation_id = (SELECT certjob_private.coordinator_organisation_id()))');
        PERFORM certjob_private.ensure_policy('coordinators read their own', 'review_problems', $p$
            FOR SELECT TO authenticated USING (EXISTS (
                SELECT FROM public.mentors AS m
                WHERE m.id = mentor_id AND m.organisation_id = (SELECT certjob_private.coordinator_organisation_id())
            ))$p$);
    END IF;
END
$_$;

CREATE FUNCTION certjob_private.set_up_portal_reading() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT 'PUBLIC' UNION ALL
        SELECT quote_ident(rolname) FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated')
    LOOP
        EXECUTE format('REVOKE ALL ON public.portal_last_reading, public.portal_unknown_contacts FROM %s', grantee);
    END LOOP;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'certjob_worker') THEN
        GRANT SELECT, INSERT, UPDATE ON public.portal_last_reading TO certjob_worker;
        GRANT SELECT, INSERT, UPDATE, DELETE ON public.portal_unknown_contacts TO certjob_worker;
        PERFORM certjob_private.ensure_policy('worker works here', each_table,
                'TO certjob_worker USING (true) WITH CHECK (true)')
            FROM unnest(ARRAY['portal_last_reading', 'portal_unknown_contacts']) AS each_table;
    END IF;
END
$$;

CREATE FUNCTION certjob_private.set_up_roles() RETURNS void
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $$
DECLARE
    left_to_do CONSTANT text := certjob_private.set_up_worker();
BEGIN
    PERFORM certjob_private.set_up_app();
    PERFORM certjob_private.set_up_portal_reading();
    PERFORM certjob_private.set_up_attention();
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

CREATE FUNCTION certjob_private.set_up_worker() RETURNS text
    LANGUAGE plpgsql
    SET search_path TO ''
    AS $_$
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
$_$;

CREATE FUNCTION public.request_portal_resync(mentor_id uuid, OUT event_id bigint, OUT event_version integer, OUT visible boolean, OUT in_flight boolean) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pg_catalog', 'pg_temp'
    SET "TimeZone" TO 'UTC'
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

COMMENT ON FUNCTION public.request_portal_resync(mentor_id uuid, OUT event_id bigint, OUT event_version integer, OUT visible boolean, OUT in_flight boolean) IS 'for the app: makes the mentor''s portal push due now; coordinators of the mentor''s organisation only';
