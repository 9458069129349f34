-- Tables that certjob writes: the audit, the intents (mails to send, portal values to push), their failures, and the
-- ledger of runs. An intent is committed together with the state that causes it, and delivered afterwards. A claim sets
-- claim_token and moves next_attempt_at to the end of its lease; only its token settles the intent. last_error and
-- failure_code (a cause of docs/samples/codes.md) describe the last failure.

-- The audit: every change of a certificate's status.
CREATE TABLE certjob.certificate_transitions (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    certificate_id uuid NOT NULL,  -- no foreign key: the history outlives a deleted certificate
    mentor_id      uuid NOT NULL REFERENCES certjob.mentors (id) ON DELETE CASCADE,
    from_status    text NOT NULL,
    to_status      text NOT NULL,
    as_of          date NOT NULL,
    run_id         uuid,
    at             timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX certificate_transitions_mentor_id_idx ON certjob.certificate_transitions (mentor_id);

-- The reminders: one row per threshold and certificate.
CREATE TABLE certjob.cert_notification_log (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mentor_id       uuid NOT NULL,  -- no foreign key: sent mails outlive a deleted mentor, with a pseudonym
    threshold_days  integer NOT NULL,
    cert_id         uuid NOT NULL,  -- no foreign key: the history outlives a deleted certificate
    kind            text,  -- of the certificate
    expires_on      date NOT NULL,
    status          text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'held', 'sent', 'failed', 'cancelled', 'superseded')),  -- held: until permitted
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claim_token     uuid,
    attempted_on    date,  -- the date of the run that claimed it last; of a sent row the day of the mail
    queued_at       timestamptz NOT NULL DEFAULT now(),
    deferred_since  timestamptz,  -- since when the server defers or rejects it, unless that was before queued_at
    sent_at         timestamptz,
    maybe_sent      boolean NOT NULL DEFAULT false,  -- an attempt ended without a known outcome
    last_error      text,
    failure_code    text,  -- null: cancelled, or never failed
    history         jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(history) = 'array'),  -- earlier cycles
    run_id          uuid,
    CONSTRAINT cert_notification_log_once UNIQUE (mentor_id, threshold_days, cert_id)
);
CREATE INDEX cert_notification_log_due_idx ON certjob.cert_notification_log (next_attempt_at, id)
    WHERE status = 'pending';
CREATE INDEX cert_notification_log_failed_idx ON certjob.cert_notification_log (mentor_id)
    WHERE status IN ('failed', 'held');
CREATE INDEX cert_notification_log_sent_idx ON certjob.cert_notification_log (sent_at) WHERE status = 'sent';

-- Returns whether a row of the log has sent a mail about this last day, now or in an earlier cycle: with this threshold, or
-- since the day on which the threshold was reached.
CREATE FUNCTION certjob_private.has_mailed(
    log certjob.cert_notification_log, last_day date, threshold integer
) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT
        FROM (
            SELECT log.expires_on, log.status, log.attempted_on
            UNION ALL
            SELECT (h ->> 'expires_on')::date, h ->> 'status', (h ->> 'attempted_on')::date
            FROM jsonb_array_elements(log.history) AS h
        ) AS mail (about, status, sent_on)
        WHERE mail.about = last_day
            AND mail.status = 'sent'
            AND (log.threshold_days = threshold OR mail.sent_on >= last_day - threshold)
    )
$$;

-- Returns the mails because of which a reminder need not be sent: about this certificate or another one of its kind, and they
-- have said the same; see has_mailed. Its call for each row would cost more than the look-up.
CREATE FUNCTION certjob_private.same_mails(
    of_mentor uuid, certificate_id uuid, last_day date, threshold integer
) RETURNS TABLE (id bigint)
LANGUAGE sql STABLE AS $$
    SELECT l.id
    FROM certjob.cert_notification_log AS l
    WHERE l.mentor_id = of_mentor
        AND (l.expires_on = last_day OR l.history <> '[]')
        AND (
            l.cert_id = certificate_id
            OR l.kind = (SELECT c.kind FROM certjob.certificates AS c WHERE c.id = certificate_id)
        )
        AND CASE l.history
            WHEN '[]' THEN l.status = 'sent' AND (l.threshold_days = threshold OR l.attempted_on >= last_day - threshold)
            ELSE certjob_private.has_mailed(l, last_day, threshold)
        END
$$;

-- Returns the id under which the mails of a deleted mentor are kept, so that none is sent twice if the mentor is entered
-- again. Without the key, no one can tell whose they are.
CREATE FUNCTION certjob_private.pseudonym(key bytea, organisation_id uuid, member_no text) RETURNS uuid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT left(encode(sha256(key || convert_to(concat_ws(':', organisation_id, member_no), 'UTF8')), 'hex'), 32)::uuid
$$;

-- The coordinators' daily mails: at most one open row per coordinator.
CREATE TABLE certjob.coordinator_digests (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    coordinator_id  uuid NOT NULL REFERENCES certjob.coordinators (id) ON UPDATE CASCADE ON DELETE CASCADE,
    digest_on       date NOT NULL,
    status          text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'sent', 'failed', 'cancelled', 'superseded')),
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claim_token     uuid,
    queued_at       timestamptz NOT NULL DEFAULT now(),
    sent_at         timestamptz,
    sent_number     integer,  -- the order of the coordinator's sent digests, independent of clocks
    maybe_sent      boolean NOT NULL DEFAULT false,
    deferred_since  timestamptz,  -- as of a reminder
    reported        text[] NOT NULL DEFAULT '{}',  -- the keys of everything on a sent page
    last_error      text,
    failure_code    text  -- null: cancelled, or never failed
);
CREATE INDEX coordinator_digests_due_idx ON certjob.coordinator_digests (next_attempt_at, id) WHERE status = 'pending';
CREATE UNIQUE INDEX coordinator_digests_one_open ON certjob.coordinator_digests (coordinator_id)
    WHERE status IN ('pending', 'failed', 'cancelled');
CREATE INDEX coordinator_digests_sent_idx ON certjob.coordinator_digests (coordinator_id, sent_number DESC NULLS LAST)
    WHERE status = 'sent';

-- The key of the Message-IDs, one row: without it, no one can forge a delivery report. set_up_rights creates it.
CREATE TABLE certjob.mail_key (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    key      bytea NOT NULL DEFAULT sha256(convert_to(concat(gen_random_uuid(), gen_random_uuid()), 'UTF8'))
);

-- Visibility to push: at most one open row per mentor, with the newest value.
CREATE TABLE certjob.portal_sync_events (
    id                bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mentor_id         uuid NOT NULL REFERENCES certjob.mentors (id) ON DELETE CASCADE,
    visible           boolean NOT NULL,
    wanted_until      date,  -- of a show: the last visible day; null: not known before the claim
    version           integer NOT NULL DEFAULT 1 CHECK (version >= 1),  -- rises with every new request
    status            text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'delivered', 'blocked', 'withdrawn')),
    attempts          integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),  -- rounds of calls
    next_attempt_at   timestamptz NOT NULL DEFAULT now(),
    claim_token       uuid,
    claim_contact_id  uuid,  -- the contact of the call in flight
    wanted_at         timestamptz NOT NULL DEFAULT now(),
    delivered_at      timestamptz,
    hidden_by         text,  -- who has said that the contact was hidden by hand, which counts as delivered
    hidden_because    text,
    -- The portal shows the contact at least until sure_until and at most until shown_until: 0001-01-01 is hidden, and
    -- infinity no known day. Each claim widens the range, because its answer may be lost; a confirmation ends that. A new
    -- event continues the range of the last one. Without a column for the day, a portal knows only these two values.
    sure_until        date NOT NULL DEFAULT '0001-01-01',
    shown_until       date NOT NULL DEFAULT 'infinity',
    -- A hide, or a show that ends before a day that the portal may have.
    is_urgent         boolean NOT NULL GENERATED ALWAYS AS (
        NOT visible OR coalesce(wanted_until < shown_until, false) AND shown_until < 'infinity'
    ) STORED,
    last_error        text,
    failure_code      text,  -- null or outdated without a last_error
    run_id            uuid
);
CREATE UNIQUE INDEX portal_sync_events_one_open_per_mentor ON certjob.portal_sync_events (mentor_id)
    WHERE status IN ('pending', 'blocked');
-- Order of delivery: untried urgent ones, untried shows, retried urgent ones, retried shows, later last days.
CREATE INDEX portal_sync_events_due_idx ON certjob.portal_sync_events
    ((sure_until > '0001-01-01' AND NOT is_urgent), (attempts > 0), (NOT is_urgent), next_attempt_at)
    WHERE status = 'pending';
CREATE INDEX portal_sync_events_mentor_id_idx ON certjob.portal_sync_events (mentor_id, id);
CREATE INDEX portal_sync_events_hidden_idx ON certjob.portal_sync_events (delivered_at)
    WHERE status = 'delivered' AND NOT visible;
CREATE INDEX portal_sync_events_by_hand_idx ON certjob.portal_sync_events (mentor_id)
    WHERE NOT visible AND (status = 'withdrawn' OR hidden_by IS NOT NULL);
CREATE INDEX portal_sync_events_in_flight_idx ON certjob.portal_sync_events (claim_contact_id)
    WHERE claim_token IS NOT NULL;

-- Failed pushes: at most one unresolved row per mentor. A later success resolves it.
CREATE TABLE certjob.dynamics_sync_failures (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mentor_id      uuid NOT NULL REFERENCES certjob.mentors (id) ON DELETE CASCADE,
    event_id       bigint REFERENCES certjob.portal_sync_events (id) ON DELETE SET NULL,
    visible        boolean NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('transient', 'permanent', 'stage')),
    attempts       integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),  -- calls to the Edge Function
    error          text NOT NULL,
    failure_code   text,  -- why the last round failed, or why the stage stopped before it
    correlation_id text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    last_failed_at timestamptz NOT NULL DEFAULT now(),
    resolved_at    timestamptz
);
CREATE UNIQUE INDEX dynamics_sync_failures_one_unresolved_per_mentor ON certjob.dynamics_sync_failures (mentor_id)
    WHERE resolved_at IS NULL;
CREATE INDEX dynamics_sync_failures_event_id_idx ON certjob.dynamics_sync_failures (event_id);
CREATE INDEX dynamics_sync_failures_mentor_id_idx ON certjob.dynamics_sync_failures (mentor_id);

-- The last complete reading of the portal by `certjob reconcile`: one row.
CREATE TABLE certjob.portal_last_reading (
    only_one      boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    read_at       timestamptz NOT NULL,  -- when it began; a later event may have changed the portal meanwhile
    visible       uuid[] NOT NULL,  -- the contacts that the portal showed
    dates         boolean NOT NULL,  -- whether the portal has a column for the last visible day
    secret_until  date,  -- the last day of the function's client secret; null: unknown
    is_doubtful   boolean NOT NULL DEFAULT false  -- it lists fewer than half of those who should be visible
);

-- Returns the range in which the portal shows a mentor's contact, for a new push: that of the last one to this contact, or
-- the day that readings have agreed with.
CREATE FUNCTION certjob_private.days_on_portal(mentor certjob.mentors) RETURNS TABLE (sure_until date, shown_until date)
LANGUAGE sql STABLE AS $$
    SELECT coalesce(CASE WHEN (mentor).portal_visible THEN coalesce(e.sure_until, agreed.day) END, '0001-01-01'),
        coalesce(e.shown_until, agreed.day, 'infinity')
    FROM (
        SELECT max(CASE WHEN r.dates THEN least((mentor).certified_until, '2099-12-31') ELSE 'infinity' END) AS day
        FROM certjob.portal_last_reading AS r
        WHERE r.only_one AND (mentor).portal_visible
    ) AS agreed
    LEFT JOIN LATERAL (
        SELECT p.sure_until, p.shown_until
        FROM certjob.portal_sync_events AS p
        WHERE p.mentor_id = (mentor).id AND p.claim_contact_id = (mentor).dynamics_contact_id
        ORDER BY p.id DESC LIMIT 1
    ) AS e ON true
$$;

-- The last copy of an app's facts by certjob_mirror.sync(): one row.
CREATE TABLE certjob.facts_last_copy (
    only_one      boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    failing_since timestamptz,  -- null: it has copied every fact
    problem       text  -- without values of the app
);

-- Contacts that the portal shows and that belong to no mentor of an organisation with a portal.
CREATE TABLE certjob.portal_unknown_contacts (
    contact_id    uuid PRIMARY KEY,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at  timestamptz NOT NULL DEFAULT now(),
    gone_at       timestamptz  -- when a complete reading did not contain it
);
CREATE INDEX portal_unknown_contacts_open_idx ON certjob.portal_unknown_contacts (first_seen_at, contact_id)
    WHERE gone_at IS NULL;

-- Why a mentor is still due. Only the transaction that writes a decision about the mentor deletes the row, under the lock of
-- the mentor. Without a foreign key, because a mentor whom another session has locked gets a row, too.
CREATE TABLE certjob.still_due (
    mentor_id uuid PRIMARY KEY,
    what      text NOT NULL CHECK (what IN ('held', 'not_reviewed')),
    reason    text NOT NULL,  -- why not; of a held mentor what would happen, as `Effect` in certjob/domain/models.py
    since     timestamptz NOT NULL DEFAULT now(),
    as_of     date NOT NULL,  -- the day of the last run that found it
    after_gap boolean NOT NULL DEFAULT false,  -- held, because the review that foresaw the change was too old
    certified_until date  -- of a held mentor the value that a review would store
);

-- Shows that `certjob reconcile` holds, because the portal lists fewer than half of the mentors who should be visible.
CREATE TABLE certjob.portal_holds (
    organisation_id uuid PRIMARY KEY REFERENCES certjob.organisations (id) ON DELETE CASCADE,
    since           timestamptz NOT NULL DEFAULT now(),
    mentors         integer NOT NULL
);

-- The mentors with surprising changes of each chunk. The guards add those of the last 20 hours. Permitted changes have no row.
CREATE TABLE certjob.guard_counts (
    organisation_id uuid NOT NULL,
    what            text NOT NULL,  -- `Change` in certjob/domain/models.py
    at              timestamptz NOT NULL DEFAULT now(),
    number          integer NOT NULL CHECK (number > 0)
);

-- The ledger of runs: one row for every run, also for a failed one.
CREATE TABLE certjob.job_runs (
    id           uuid PRIMARY KEY,  -- chosen by the client, because a run uses its id before it writes the row
    command      text NOT NULL,
    as_of        date NOT NULL,
    organisation text,  -- null: all
    host         text NOT NULL,
    version      text NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    outcome      text CHECK (outcome IN ('ok', 'attention', 'failed')),
    counts       jsonb NOT NULL DEFAULT '{}',
    lines        text[] NOT NULL DEFAULT '{}',  -- why it failed, or what needs attention: ids, no personal data
    told         text[]  -- the keys of the alerts and stops that it has printed; null: nothing was printed
);
CREATE INDEX job_runs_as_of_idx ON certjob.job_runs (as_of);
CREATE INDEX job_runs_finished_at_idx ON certjob.job_runs (finished_at) WHERE finished_at IS NOT NULL;

-- What `certjob load` has changed, for --undo and `certjob explain`: a row for each load, and one for each mentor and
-- certificate that it has added or changed. `db prune` deletes them after 90 days.
CREATE TABLE certjob.loaded_rows (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    load_id        uuid NOT NULL,
    loaded_at      timestamptz NOT NULL DEFAULT now(),
    loaded_by      text NOT NULL,
    undone_at      timestamptz,
    undone_by      text,
    mentor_id      uuid REFERENCES certjob.mentors (id) ON DELETE CASCADE,  -- null: the row of the load
    certificate_id uuid,  -- null: the mentor's own row. No foreign key: the history outlives a deleted certificate
    before         jsonb,  -- null: added
    after          jsonb
);
CREATE INDEX loaded_rows_load_id_idx ON certjob.loaded_rows (load_id);
CREATE INDEX loaded_rows_mentor_id_idx ON certjob.loaded_rows (mentor_id);
