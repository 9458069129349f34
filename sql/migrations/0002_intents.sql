-- What certjob writes: the audit, and the intents (a reminder to send, a portal value to push) that are
-- committed together with the state they follow from and delivered afterwards (transactional outbox).

CREATE TABLE certificate_transitions (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    certificate_id uuid NOT NULL,  -- no foreign key: a deleted certificate leaves its history
    mentor_id      uuid NOT NULL REFERENCES mentors (id) ON DELETE CASCADE,
    from_status    text NOT NULL,
    to_status      text NOT NULL,
    as_of          date NOT NULL,
    run_id         uuid,
    at             timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE certificate_transitions ENABLE ROW LEVEL SECURITY;
CREATE INDEX certificate_transitions_mentor_id_idx ON certificate_transitions (mentor_id);

CREATE TABLE cert_notification_log (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mentor_id       uuid NOT NULL REFERENCES mentors (id) ON DELETE CASCADE,
    threshold_days  integer NOT NULL,
    cert_id         uuid NOT NULL,  -- no foreign key: a deleted certificate leaves its history
    expires_on      date NOT NULL,
    status          text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'sent', 'failed', 'cancelled', 'superseded')),
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claim_token     uuid,
    queued_at       timestamptz NOT NULL DEFAULT now(),
    sent_at         timestamptz,
    maybe_sent      boolean NOT NULL DEFAULT false,
    last_error      text,
    history         jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(history) = 'array'),
    run_id          uuid,
    -- Each mentor is reminded once per threshold and certificate: every reminder goes through an upsert on this.
    CONSTRAINT cert_notification_log_once UNIQUE (mentor_id, threshold_days, cert_id)
);
ALTER TABLE cert_notification_log ENABLE ROW LEVEL SECURITY;
CREATE INDEX cert_notification_log_due_idx ON cert_notification_log (next_attempt_at, id) WHERE status = 'pending';
CREATE INDEX cert_notification_log_failed_idx ON cert_notification_log (id) WHERE status = 'failed';

CREATE TABLE portal_sync_events (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mentor_id       uuid NOT NULL REFERENCES mentors (id) ON DELETE CASCADE,
    visible         boolean NOT NULL,
    version         integer NOT NULL DEFAULT 1 CHECK (version >= 1),
    status          text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'blocked', 'withdrawn')),
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claim_token     uuid,
    wanted_at       timestamptz NOT NULL DEFAULT now(),
    delivered_at    timestamptz,
    last_error      text,
    run_id          uuid
);
ALTER TABLE portal_sync_events ENABLE ROW LEVEL SECURITY;
COMMENT ON COLUMN portal_sync_events.attempts IS 'rounds: how often the event was claimed and tried';
CREATE UNIQUE INDEX portal_sync_events_one_open_per_mentor ON portal_sync_events (mentor_id)
    WHERE status IN ('pending', 'blocked');
-- The order of delivery: hides before shows, untried before retried.
CREATE INDEX portal_sync_events_due_idx ON portal_sync_events (visible, attempts, next_attempt_at) WHERE status = 'pending';
CREATE INDEX portal_sync_events_mentor_id_idx ON portal_sync_events (mentor_id);

CREATE TABLE dynamics_sync_failures (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mentor_id      uuid NOT NULL REFERENCES mentors (id) ON DELETE CASCADE,
    event_id       bigint REFERENCES portal_sync_events (id) ON DELETE SET NULL,
    visible        boolean NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('transient', 'permanent', 'stage')),
    attempts       integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    error          text NOT NULL,
    correlation_id text,
    created_at     timestamptz NOT NULL DEFAULT now(),
    last_failed_at timestamptz NOT NULL DEFAULT now(),
    resolved_at    timestamptz
);
ALTER TABLE dynamics_sync_failures ENABLE ROW LEVEL SECURITY;
COMMENT ON COLUMN dynamics_sync_failures.attempts IS 'calls made to the Edge Function';
CREATE UNIQUE INDEX dynamics_sync_failures_one_unresolved_per_mentor ON dynamics_sync_failures (mentor_id)
    WHERE resolved_at IS NULL;
CREATE INDEX dynamics_sync_failures_event_id_idx ON dynamics_sync_failures (event_id);
CREATE INDEX dynamics_sync_failures_mentor_id_idx ON dynamics_sync_failures (mentor_id);

CREATE TABLE coordinator_digests (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    coordinator_id  uuid NOT NULL REFERENCES coordinators (id) ON DELETE CASCADE,
    digest_on       date NOT NULL,
    status          text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'sent', 'failed', 'cancelled', 'superseded')),
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    claim_token     uuid,
    covers_from     timestamptz,
    queued_at       timestamptz NOT NULL DEFAULT now(),
    sent_at         timestamptz,
    last_error      text,
    CONSTRAINT coordinator_digests_once UNIQUE (coordinator_id, digest_on)
);
ALTER TABLE coordinator_digests ENABLE ROW LEVEL SECURITY;
CREATE INDEX coordinator_digests_due_idx ON coordinator_digests (next_attempt_at, id) WHERE status = 'pending';

CREATE TABLE job_runs (
    id           uuid PRIMARY KEY,  -- made by the client, so that a run can name itself before it is written
    command      text NOT NULL,
    as_of        date NOT NULL,
    organisation text,
    host         text NOT NULL,
    version      text NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    outcome      text CHECK (outcome IN ('ok', 'attention', 'failed')),
    counts       jsonb NOT NULL DEFAULT '{}'
);
ALTER TABLE job_runs ENABLE ROW LEVEL SECURITY;
CREATE INDEX job_runs_as_of_idx ON job_runs (as_of);
CREATE INDEX job_runs_finished_at_idx ON job_runs (finished_at) WHERE finished_at IS NOT NULL;
