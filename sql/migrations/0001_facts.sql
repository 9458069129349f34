-- The facts: what the app, an import or a person writes. certjob only reads them, but for the few
-- derived columns (mentors.portal_visible, mentors.review_on, certificates.status, its own pauses).
-- Row-level security is switched on where each table is made, so that no table is ever exposed by mistake.

CREATE TABLE organisations (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    slug                text NOT NULL UNIQUE CHECK (slug ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    name                text NOT NULL CHECK (name <> ''),
    portal              text CHECK (portal IN ('dynamics')),
    reminder_thresholds integer[] NOT NULL DEFAULT '{60,30,14,7,1,-1}',
    optional_kinds      text[] NOT NULL DEFAULT '{}' CHECK (array_position(optional_kinds, NULL) IS NULL),
    contact_email       text,
    contact_phone       text,
    renewal_url         text,
    CONSTRAINT organisations_reminder_thresholds_check CHECK (
        coalesce(array_ndims(reminder_thresholds), 1) = 1
        AND cardinality(reminder_thresholds) <= 50
        AND array_position(reminder_thresholds, NULL) IS NULL
        AND -3650 <= ALL (reminder_thresholds)
        AND 3650 >= ALL (reminder_thresholds)
    )
);
ALTER TABLE organisations ENABLE ROW LEVEL SECURITY;

CREATE TABLE coordinators (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organisation_id uuid NOT NULL REFERENCES organisations (id),
    full_name       text,
    email           text NOT NULL CHECK (email <> ''),
    locale          text NOT NULL DEFAULT 'nb' CHECK (locale IN ('nb', 'nn', 'en'))
);
ALTER TABLE coordinators ENABLE ROW LEVEL SECURITY;
CREATE UNIQUE INDEX coordinators_one_per_address ON coordinators (organisation_id, lower(email));
COMMENT ON COLUMN coordinators.id IS 'the app''s user id; auth.uid() on Supabase';

CREATE TABLE mentors (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    organisation_id     uuid NOT NULL REFERENCES organisations (id),
    member_no           text NOT NULL CHECK (member_no <> ''),
    full_name           text,
    email               text,
    locale              text NOT NULL DEFAULT 'nb' CHECK (locale IN ('nb', 'nn', 'en')),
    dynamics_contact_id uuid,
    left_at             timestamptz,
    portal_visible      boolean DEFAULT true,
    review_on           date NOT NULL DEFAULT '-infinity',
    UNIQUE (organisation_id, member_no),
    -- The nightly walk starts strictly after ('-infinity', nil): a mentor with the nil uuid would never be seen.
    CONSTRAINT mentors_id_check CHECK (id <> '00000000-0000-0000-0000-000000000000')
);
ALTER TABLE mentors ENABLE ROW LEVEL SECURITY;
COMMENT ON COLUMN mentors.portal_visible IS 'derived: the last value wanted on the portal; null = push the next one whatever it is';
COMMENT ON COLUMN mentors.review_on IS 'derived: the next date on which something can be due; -infinity = look now, infinity = never';

-- Two mentors on one contact would hide and show each other.
CREATE UNIQUE INDEX mentors_one_per_contact ON mentors (organisation_id, dynamics_contact_id)
    WHERE dynamics_contact_id IS NOT NULL;
-- A night costs what is due, not what exists.
CREATE INDEX mentors_review_on_id_idx ON mentors (review_on, id);

CREATE TABLE certificates (
    id         uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    mentor_id  uuid NOT NULL REFERENCES mentors (id) ON DELETE CASCADE,
    kind       text NOT NULL CHECK (kind <> ''),
    issued_on  date NOT NULL,
    expires_on date NOT NULL,
    revoked_at timestamptz,
    status     text NOT NULL DEFAULT 'recorded'
        CHECK (status IN ('recorded', 'upcoming', 'valid', 'expiring', 'expired', 'renewed', 'revoked')),
    UNIQUE (mentor_id, kind, issued_on),
    CONSTRAINT certificates_expires_on_check CHECK (expires_on >= issued_on),
    -- Infinity and years past 9999 are dates to PostgreSQL but to few programs; 9999-12-31 serves as "never".
    CONSTRAINT certificates_dates_check CHECK (issued_on >= '0001-01-01' AND expires_on <= '9999-12-31')
);
ALTER TABLE certificates ENABLE ROW LEVEL SECURITY;

CREATE TABLE mentor_pauses (
    id        uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    mentor_id uuid NOT NULL REFERENCES mentors (id) ON DELETE CASCADE,
    reason    text NOT NULL CHECK (reason <> ''),
    actor     text NOT NULL CHECK (actor <> ''),
    paused_at timestamptz NOT NULL DEFAULT now(),
    lifted_at timestamptz,
    lifted_by text,
    -- certjob opens and lifts only its own.
    CONSTRAINT mentor_pauses_own_check CHECK ((reason = 'certification_expired') = (actor = 'certjob')),
    CONSTRAINT mentor_pauses_lifted_check CHECK (
        (lifted_by IS NULL OR lifted_at IS NOT NULL)
        AND (lifted_by IS DISTINCT FROM 'certjob' OR actor = 'certjob')
    )
);
ALTER TABLE mentor_pauses ENABLE ROW LEVEL SECURITY;

CREATE UNIQUE INDEX mentor_pauses_one_open_per_reason ON mentor_pauses (mentor_id, reason) WHERE lifted_at IS NULL;
CREATE INDEX mentor_pauses_mentor_id_idx ON mentor_pauses (mentor_id);
