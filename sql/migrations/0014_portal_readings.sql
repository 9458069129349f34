-- The portal is read: what it showed last, and whom it shows although nobody asked for it. Both are certjob's alone.

-- One row: an older reading says nothing that a newer one does not. The contacts themselves are kept, so that of each
-- mentor it can be said what the portal showed.
CREATE TABLE portal_last_reading (
    only_one      boolean     PRIMARY KEY DEFAULT true CHECK (only_one),
    read_at       timestamptz NOT NULL,
    pages         integer     NOT NULL,
    visible       uuid[]      NOT NULL,
    differences   jsonb       NOT NULL DEFAULT '{}',
    contradictory uuid[]      NOT NULL DEFAULT '{}',
    held          boolean     NOT NULL DEFAULT false,
    run_id        uuid
);
ALTER TABLE portal_last_reading ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE portal_last_reading IS 'the last complete reading of what the portal shows';
COMMENT ON COLUMN portal_last_reading.read_at IS 'when the reading began; a later event may have changed what it saw';
COMMENT ON COLUMN portal_last_reading.visible IS 'the contacts that the portal showed';
COMMENT ON COLUMN portal_last_reading.differences IS 'how many there were of each kind';
COMMENT ON COLUMN portal_last_reading.contradictory IS 'contacts that one organisation wants shown and another one hidden';
COMMENT ON COLUMN portal_last_reading.held IS 'whether the guard held shows: the reading may be of a wrong column';

CREATE TABLE portal_unknown_contacts (
    contact_id       uuid        PRIMARY KEY,
    first_seen_at    timestamptz NOT NULL DEFAULT now(),
    last_seen_at     timestamptz NOT NULL DEFAULT now(),
    gone_at          timestamptz,
    accepted_at      timestamptz,
    accepted_by      text CHECK (length(accepted_by) <= 200),
    accepted_because text CHECK (length(accepted_because) <= 1000),
    CONSTRAINT portal_unknown_contacts_accepted
        CHECK (num_nulls(accepted_at, accepted_by, accepted_because) IN (0, 3))
);
ALTER TABLE portal_unknown_contacts ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE portal_unknown_contacts IS
    'contacts that the portal shows and that belong to no mentor of an organisation with a portal';
COMMENT ON COLUMN portal_unknown_contacts.gone_at IS 'when a complete reading no longer showed it';
COMMENT ON COLUMN portal_unknown_contacts.accepted_at IS 'somebody said that this contact is shown on purpose';
CREATE INDEX portal_unknown_contacts_open_idx ON portal_unknown_contacts (first_seen_at, contact_id)
    WHERE gone_at IS NULL AND accepted_at IS NULL;

ALTER TABLE portal_sync_events ADD COLUMN corrects_portal boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN portal_sync_events.corrects_portal IS
    'the portal showed something else than certjob had confirmed: somebody had changed it there';
CREATE INDEX portal_sync_events_corrections_idx ON portal_sync_events (delivered_at)
    WHERE corrects_portal AND status = 'delivered';

CREATE FUNCTION certjob_private.set_up_portal_reading() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
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

CREATE OR REPLACE FUNCTION certjob_private.set_up_roles() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    left_to_do CONSTANT text := certjob_private.set_up_worker();
BEGIN
    PERFORM certjob_private.set_up_app();
    PERFORM certjob_private.set_up_portal_reading();
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
SELECT certjob_private.set_up_portal_reading();
