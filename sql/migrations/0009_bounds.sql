-- How long a value, and how many rows of one mentor may be; and facts that are taken away with TRUNCATE.
--
-- Without bounds one account's insert of 40,000 certificates, or one kind of 230,000 letters, costs every organisation
-- its nightly run. The bounds are triggers: a CHECK would be asked for rows from before, too, and certjob's own UPDATE of
-- their status would fail. Rows that are beyond a bound already are listed at the end, for the operator.

CREATE FUNCTION certjob_private.refuse_long_value() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '%.% is too long, at most % are allowed', TG_TABLE_NAME, TG_ARGV[0], TG_ARGV[1]
        USING ERRCODE = 'string_data_right_truncation', TABLE = TG_TABLE_NAME, COLUMN = TG_ARGV[0],
              CONSTRAINT = format('certjob_%s_%s_length', TG_TABLE_NAME, TG_ARGV[0]);
END
$$;

CREATE FUNCTION certjob_private.list_longer_rows(table_name text, column_name text, too_long text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rows_found bigint;
    first_ids text;
BEGIN
    EXECUTE format(
        'SELECT count(*), string_agg(id::text, %L ORDER BY id) FILTER (WHERE number <= 5) FROM '
        '(SELECT id, row_number() OVER (ORDER BY id) AS number FROM public.%I WHERE %s) AS longer',
        ', ', table_name, format(too_long, format('%I', column_name))
    ) INTO rows_found, first_ids;
    IF rows_found > 0 THEN
        RAISE WARNING '%.%: % longer than is allowed from now on; shorten it (id: %)', table_name, column_name,
            CASE rows_found WHEN 1 THEN '1 row is' ELSE rows_found || ' rows are' END,
            first_ids || CASE WHEN rows_found > 5 THEN ', …' ELSE '' END;
    END IF;
END
$$;

-- WHEN is asked without calling the function, so that a bulk load pays next to nothing.
DO $$
DECLARE
    bound record;
BEGIN
    FOR bound IN
        SELECT * FROM (VALUES
            ('certificates', 'kind', 'length(%s) > 200', '200 characters'),
            ('mentor_pauses', 'reason', 'length(%s) > 200', '200 characters'),
            ('mentor_pauses', 'actor', 'length(%s) > 200', '200 characters'),
            ('mentor_pauses', 'lifted_by', 'length(%s) > 200', '200 characters'),
            ('mentors', 'member_no', 'length(%s) > 200', '200 characters'),
            ('mentors', 'full_name', 'length(%s) > 1000', '1,000 characters'),
            ('mentors', 'email', 'length(%s) > 1000', '1,000 characters'),
            ('coordinators', 'full_name', 'length(%s) > 1000', '1,000 characters'),
            ('coordinators', 'email', 'length(%s) > 1000', '1,000 characters'),
            ('organisations', 'name', 'length(%s) > 1000', '1,000 characters'),
            ('organisations', 'contact_email', 'length(%s) > 1000', '1,000 characters'),
            ('organisations', 'contact_phone', 'length(%s) > 1000', '1,000 characters'),
            ('organisations', 'renewal_url', 'length(%s) > 1000', '1,000 characters'),
            ('organisations', 'optional_kinds', 'length(array_to_string(%s, '''')) > 10000', '10,000 characters')
        ) AS bounds (table_name, column_name, too_long, most)
    LOOP
        EXECUTE format(
            'CREATE TRIGGER %I BEFORE INSERT OR UPDATE OF %I ON public.%I FOR EACH ROW WHEN (%s) '
            'EXECUTE FUNCTION certjob_private.refuse_long_value(%L, %L)',
            bound.column_name || '_length', bound.column_name, bound.table_name,
            format(bound.too_long, format('NEW.%I', bound.column_name)), bound.column_name, bound.most
        );
        PERFORM certjob_private.list_longer_rows(bound.table_name, bound.column_name, bound.too_long);
    END LOOP;
END
$$;
DROP FUNCTION certjob_private.list_longer_rows(text, text, text);

-- A mentor may have 200 certificates and 200 open pauses of other people's. They are counted under the mentor's lock,
-- where nobody else can add one: without it, two transactions at once were seen to reach 300. The commands count, too
-- (read_mentors), for the mentors who had more before this migration.
--
-- pg_temp is named, and last: see 0007. A caller's type of the name uuid would otherwise be meant.
CREATE FUNCTION certjob_private.refuse_too_many_certificates(mentor_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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

CREATE OR REPLACE FUNCTION certjob_private.certificates_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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

CREATE OR REPLACE FUNCTION certjob_private.certificate_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM 1 FROM public.mentors WHERE id IN (OLD.mentor_id, NEW.mentor_id) ORDER BY id FOR NO KEY UPDATE;
    IF NEW.mentor_id <> OLD.mentor_id THEN
        PERFORM certjob_private.refuse_too_many_certificates(ARRAY[NEW.mentor_id]);
    END IF;
    UPDATE public.mentors SET review_on = '-infinity' WHERE id IN (OLD.mentor_id, NEW.mentor_id);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION certjob_private.pause_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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

DO $$
DECLARE
    mentors_found bigint;
    first_ids text;
BEGIN
    SELECT count(*), string_agg(mentor_id::text, ', ' ORDER BY mentor_id) FILTER (WHERE number <= 5)
    INTO mentors_found, first_ids
    FROM (
        SELECT mentor_id, row_number() OVER (ORDER BY mentor_id) AS number
        FROM (
            SELECT mentor_id FROM public.certificates GROUP BY mentor_id HAVING count(*) > 200
            UNION
            SELECT mentor_id
            FROM public.mentor_pauses
            WHERE lifted_at IS NULL AND reason <> 'certification_expired'
            GROUP BY mentor_id
            HAVING count(*) > 200
        ) AS crowded
    ) AS crowded;
    IF mentors_found > 0 THEN
        RAISE WARNING '% more than 200 certificates or open pauses, and certjob cannot review them; delete what is '
            'too much (id: %)',
            CASE mentors_found WHEN 1 THEN '1 mentor has' ELSE mentors_found || ' mentors have' END,
            first_ids || CASE WHEN mentors_found > 5 THEN ', …' ELSE '' END;
    END IF;
END
$$;

-- TRUNCATE fires no row trigger. Whoever lost facts is looked at again; mentors go only where their deletion would be
-- let through; and of a push that is lost nobody knows what the portal shows.
CREATE FUNCTION certjob_private.facts_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM 1 FROM public.mentors ORDER BY id FOR NO KEY UPDATE;
    UPDATE public.mentors SET review_on = '-infinity';
    RETURN NULL;
END
$$;

CREATE TRIGGER certificates_truncated AFTER TRUNCATE ON certificates
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.facts_truncated();
CREATE TRIGGER pauses_truncated AFTER TRUNCATE ON mentor_pauses
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.facts_truncated();

CREATE FUNCTION certjob_private.mentors_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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

CREATE TRIGGER mentors_truncated BEFORE TRUNCATE ON mentors
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.mentors_truncated();

CREATE FUNCTION certjob_private.portal_events_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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

CREATE TRIGGER portal_events_truncated BEFORE TRUNCATE ON portal_sync_events
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.portal_events_truncated();

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA certjob_private FROM PUBLIC;
