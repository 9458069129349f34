-- Facts. The app, an import or a person writes them. certjob writes only its own pauses and the derived columns.
-- 0003_triggers.sql limits the length of texts. 0006_roles.sql grants rights and switches on row-level security.

CREATE TABLE certjob.organisations (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    slug                text NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    name                text NOT NULL CHECK (name <> ''),
    portal              text CHECK (portal = 'dynamics'),  -- null: no portal
    reminder_thresholds integer[] NOT NULL DEFAULT '{60,30,14,7,1,-1}',  -- days before the last day; -1: the day after
    optional_kinds      text[] NOT NULL DEFAULT '{}' CHECK (array_position(optional_kinds, NULL) IS NULL),
    contact_email       text,
    contact_phone       text,
    renewal_url         text,
    sender              text CHECK (sender <> ''),  -- an address, or a name and <address>; null: CERTJOB_MAIL_FROM
    -- The ids of alerts that concern everyone begin with `all:`.
    CONSTRAINT organisations_slug_is_not_all CHECK (slug <> 'all'),
    CONSTRAINT organisations_reminder_thresholds_check CHECK (
        coalesce(array_ndims(reminder_thresholds), 1) = 1 AND cardinality(reminder_thresholds) <= 50
        AND array_position(reminder_thresholds, NULL) IS NULL
        AND -3650 <= ALL (reminder_thresholds) AND 3650 >= ALL (reminder_thresholds)
    )
);

-- The recipients of an organisation's digest.
CREATE TABLE certjob.coordinators (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),  -- the app's user id: auth.uid() on Supabase
    organisation_id uuid NOT NULL REFERENCES certjob.organisations (id),
    full_name       text,
    email           text NOT NULL CHECK (email <> ''),
    locale          text NOT NULL DEFAULT 'nb' CHECK (locale IN ('nb', 'nn', 'en'))
);
CREATE UNIQUE INDEX coordinators_one_per_address ON certjob.coordinators (organisation_id, lower(email));

CREATE TABLE certjob.mentors (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organisation_id     uuid NOT NULL REFERENCES certjob.organisations (id),
    member_no           text NOT NULL CHECK (member_no <> ''),
    full_name           text,
    email               text,
    locale              text NOT NULL DEFAULT 'nb' CHECK (locale IN ('nb', 'nn', 'en')),
    -- Unique, because two mentors with one contact would hide and show each other. One transaction may swap two.
    dynamics_contact_id uuid UNIQUE DEFERRABLE INITIALLY IMMEDIATE,
    left_at             timestamptz,
    -- Derived columns.
    portal_visible      boolean,  -- the last value queued for the portal; null: queue the next one anyway
    certified_until     date,  -- the last certified day if no fact changes; 0001-01-01: not certified; null: unknown
    decided_visible     boolean,  -- whether the last review decided that the mentor may be visible; null: never reviewed
    without_certificate boolean NOT NULL DEFAULT false,  -- active, and has never had a certificate that counts
    seen_certificates   jsonb NOT NULL DEFAULT '[]',  -- last days and kinds that a review has seen, also of deleted ones
    review_on           date NOT NULL DEFAULT '-infinity',  -- the next review; -infinity: now, infinity: never
    reviewed_contact_id uuid,  -- the last contact ID that a review has seen
    UNIQUE (organisation_id, member_no),
    -- A run pages through the mentors and starts after this id, so it would skip such a mentor.
    CONSTRAINT mentors_id_check CHECK (id <> '00000000-0000-0000-0000-000000000000')
);
CREATE INDEX mentors_review_on_id_idx ON certjob.mentors (review_on, id);
CREATE INDEX mentors_without_certificate_idx ON certjob.mentors (organisation_id) WHERE without_certificate;

CREATE TABLE certjob.certificates (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    mentor_id  uuid NOT NULL REFERENCES certjob.mentors (id) ON DELETE CASCADE,
    kind       text NOT NULL CHECK (kind <> ''),
    issued_on  date NOT NULL,
    expires_on date NOT NULL,  -- the last day on which it is valid
    revoked_at timestamptz,
    status     text NOT NULL DEFAULT 'recorded'  -- derived
        CHECK (status IN ('recorded', 'upcoming', 'valid', 'expiring', 'expired', 'renewed', 'revoked')),
    UNIQUE (mentor_id, kind, issued_on),
    CONSTRAINT certificates_expires_on_check CHECK (expires_on >= issued_on),
    -- Many programs cannot read infinity or years after 9999. 9999-12-31 means "never".
    CONSTRAINT certificates_dates_check CHECK (issued_on >= '0001-01-01' AND expires_on <= '9999-12-31')
);
CREATE INDEX certificates_expires_on_idx ON certjob.certificates (expires_on);

-- A paused mentor may not take assignments. Pauses with the actor certjob are derived.
CREATE TABLE certjob.mentor_pauses (
    id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    mentor_id uuid NOT NULL REFERENCES certjob.mentors (id) ON DELETE CASCADE,
    reason    text NOT NULL CHECK (reason <> ''),
    actor     text NOT NULL CHECK (actor <> ''),
    paused_at timestamptz NOT NULL DEFAULT now(),
    lifted_at timestamptz,
    lifted_by text,
    lapsed_kinds text[] NOT NULL DEFAULT '{}',  -- certjob's pause ends when each of these kinds is in force or optional
    -- certjob opens and lifts only its own pauses.
    CONSTRAINT mentor_pauses_own_check CHECK ((reason = 'certification_expired') = (actor = 'certjob')),
    CONSTRAINT mentor_pauses_lifted_check CHECK (
        (lifted_by IS NULL OR lifted_at IS NOT NULL) AND (lifted_by IS DISTINCT FROM 'certjob' OR actor = 'certjob')
    )
);
CREATE INDEX mentor_pauses_mentor_id_idx ON certjob.mentor_pauses (mentor_id);
CREATE UNIQUE INDEX mentor_pauses_one_open_per_reason ON certjob.mentor_pauses (mentor_id, reason)
    WHERE lifted_at IS NULL;
CREATE INDEX mentor_pauses_own_paused_at_idx ON certjob.mentor_pauses (paused_at)
    WHERE reason = 'certification_expired';
CREATE INDEX mentor_pauses_own_lifted_at_idx ON certjob.mentor_pauses (lifted_at)
    WHERE reason = 'certification_expired' AND lifted_at IS NOT NULL;
