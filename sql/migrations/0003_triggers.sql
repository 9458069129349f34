-- A change of a fact makes certjob review the mentor again (review_on = -infinity), whoever makes the change.
--
-- The functions run as their owner, because row-level security may hide mentors from the caller. They name every
-- schema, and pg_temp comes last: otherwise a temporary type of the caller, such as uuid, could run code as the owner.

-- The UPDATE does not depend on the stored review_on. certjob may hold the lock of the mentor and write a later day
-- before it commits; the UPDATE waits for that lock and then overwrites the day.
CREATE FUNCTION certjob_private.review_again(mentor_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- The fixed order prevents deadlocks between bulk imports.
    PERFORM 1 FROM certjob.mentors WHERE id = ANY (mentor_ids) ORDER BY id FOR NO KEY UPDATE;
    UPDATE certjob.mentors SET review_on = '-infinity' WHERE id = ANY (mentor_ids);
END
$$;

-- Limits the work of one review. The caller has locked the mentors, so two transactions count one after the other.
CREATE FUNCTION certjob_private.reject_too_many_certificates(mentor_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    crowded CONSTANT uuid := (
        SELECT given.id FROM unnest(mentor_ids) AS given (id)
        WHERE EXISTS (SELECT FROM certjob.certificates AS c WHERE c.mentor_id = given.id OFFSET 200) LIMIT 1
    );
BEGIN
    IF crowded IS NOT NULL THEN
        RAISE EXCEPTION 'mentor % would have more than 200 certificates', crowded
            USING ERRCODE = 'check_violation', CONSTRAINT = 'certjob_certificates_per_mentor';
    END IF;
END
$$;

CREATE FUNCTION certjob_private.certificates_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mentor_ids CONSTANT uuid[] := ARRAY(SELECT DISTINCT mentor_id FROM changed_rows);
BEGIN
    PERFORM certjob_private.review_again(mentor_ids);
    IF TG_OP = 'INSERT' THEN
        PERFORM certjob_private.reject_too_many_certificates(mentor_ids);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_inserted AFTER INSERT ON certjob.certificates REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.certificates_changed();
CREATE TRIGGER certificates_deleted AFTER DELETE ON certjob.certificates REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.certificates_changed();

CREATE FUNCTION certjob_private.certificate_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM certjob_private.review_again(ARRAY[OLD.mentor_id, NEW.mentor_id]);
    IF NEW.mentor_id <> OLD.mentor_id THEN
        PERFORM certjob_private.reject_too_many_certificates(ARRAY[NEW.mentor_id]);
    END IF;
    RETURN NULL;
END
$$;
-- certjob's own UPDATE of status does not fire it. A new id is a changed fact, because reminders refer to the id.
CREATE TRIGGER certificate_updated
    AFTER UPDATE OF id, mentor_id, kind, issued_on, expires_on, revoked_at ON certjob.certificates
    FOR EACH ROW WHEN (
        (OLD.id, OLD.mentor_id, OLD.kind, OLD.issued_on, OLD.expires_on, OLD.revoked_at)
        IS DISTINCT FROM (NEW.id, NEW.mentor_id, NEW.kind, NEW.issued_on, NEW.expires_on, NEW.revoked_at)
    )
    EXECUTE FUNCTION certjob_private.certificate_updated();

-- OLD is null for an INSERT, and NEW for a DELETE.
CREATE FUNCTION certjob_private.pause_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM certjob_private.review_again(ARRAY[OLD.mentor_id, NEW.mentor_id]);
    IF NEW.lifted_at IS NULL AND EXISTS (
        SELECT FROM certjob.mentor_pauses
        WHERE mentor_id = NEW.mentor_id AND lifted_at IS NULL AND reason <> 'certification_expired' OFFSET 200
    ) THEN
        RAISE EXCEPTION 'mentor % would have more than 200 open pauses', NEW.mentor_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'certjob_open_pauses_per_mentor';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER pause_opened AFTER INSERT ON certjob.mentor_pauses
    FOR EACH ROW WHEN (NEW.actor <> 'certjob') EXECUTE FUNCTION certjob_private.pause_changed();
CREATE TRIGGER pause_updated AFTER UPDATE OF mentor_id, reason, lifted_at ON certjob.mentor_pauses
    FOR EACH ROW WHEN (
        NEW.lifted_by IS DISTINCT FROM 'certjob'
        AND (OLD.mentor_id, OLD.reason, OLD.lifted_at) IS DISTINCT FROM (NEW.mentor_id, NEW.reason, NEW.lifted_at)
    )
    EXECUTE FUNCTION certjob_private.pause_changed();
CREATE TRIGGER pause_deleted AFTER DELETE ON certjob.mentor_pauses
    FOR EACH ROW WHEN (OLD.lifted_at IS NULL) EXECUTE FUNCTION certjob_private.pause_changed();

-- The state of a new contact is unknown (null). Without a contact, there is nothing to show or to hide.
CREATE FUNCTION certjob_private.mentor_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.portal_visible := true;
    RETURN NEW;
END
$$;
CREATE TRIGGER mentor_inserted BEFORE INSERT ON certjob.mentors
    FOR EACH ROW WHEN (NEW.portal_visible IS NULL AND NEW.dynamics_contact_id IS NULL)
    EXECUTE FUNCTION certjob_private.mentor_inserted();

CREATE FUNCTION certjob_private.mentor_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.review_on := '-infinity';
    IF OLD.dynamics_contact_id IS DISTINCT FROM NEW.dynamics_contact_id THEN
        -- Null: the state of a new contact is unknown. False: the portal hides the removed contact already.
        NEW.portal_visible := CASE WHEN NEW.dynamics_contact_id IS NULL AND (
            SELECT NOT e.visible AND e.status = 'delivered' AND e.claim_contact_id = OLD.dynamics_contact_id
            FROM certjob.portal_sync_events AS e WHERE e.mentor_id = NEW.id ORDER BY e.id DESC LIMIT 1
        ) THEN false END;
        -- certjob cannot hide the old contact any more. The next reading of the portal without it ends the alert.
        INSERT INTO certjob.portal_unknown_contacts AS u (contact_id)
        SELECT OLD.dynamics_contact_id
        WHERE (
            SELECT e.visible
            FROM certjob.portal_sync_events AS e
            WHERE e.mentor_id = NEW.id AND e.status = 'delivered' AND e.claim_contact_id = OLD.dynamics_contact_id
            ORDER BY e.id DESC LIMIT 1
        ) AND (SELECT d.shown_until >= current_date FROM certjob_private.days_on_portal(OLD) AS d) OR EXISTS (  -- a call is in flight, or its outcome is unknown
            SELECT FROM certjob.portal_sync_events AS e
            WHERE e.mentor_id = NEW.id AND e.claim_contact_id = OLD.dynamics_contact_id AND e.claim_token IS NOT NULL
                AND e.next_attempt_at > now() - interval '1 day'
        )
        ON CONFLICT (contact_id) DO UPDATE
        SET first_seen_at = CASE WHEN u.gone_at IS NULL THEN u.first_seen_at ELSE now() END, last_seen_at = now(),
            gone_at = NULL;
        -- An acknowledged "may be hidden" was about the old contact.
        DELETE FROM certjob.acknowledgements AS k
        USING certjob.portal_sync_events AS e
        WHERE e.mentor_id = NEW.id AND e.status IN ('pending', 'blocked')
            AND k.alert_id LIKE '%:may_be_hidden:%:' || e.id;
        -- An open push now goes to the new contact. A call in flight for the old contact keeps its lease, but cannot
        -- settle the row, because the version is newer.
        UPDATE certjob.portal_sync_events
        SET version = version + 1, status = 'pending', attempts = 0, sure_until = DEFAULT, shown_until = DEFAULT,
            claim_token = CASE WHEN next_attempt_at > now() THEN claim_token END,
            next_attempt_at = CASE WHEN claim_token IS NULL THEN now() ELSE greatest(next_attempt_at, now()) END
        WHERE mentor_id = NEW.id AND status IN ('pending', 'blocked') AND NEW.dynamics_contact_id IS NOT NULL;
    ELSIF OLD.organisation_id IS DISTINCT FROM NEW.organisation_id AND NEW.dynamics_contact_id IS NOT NULL THEN
        NEW.portal_visible := NULL;  -- unknown, because one of the organisations may have no portal
    END IF;
    IF OLD.email IS DISTINCT FROM NEW.email THEN
        UPDATE certjob.cert_notification_log
        SET status = 'pending', attempts = 0, next_attempt_at = now(), queued_at = now(), claim_token = NULL
        WHERE mentor_id = NEW.id AND status = 'failed';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER mentor_updated
    BEFORE UPDATE OF left_at, email, organisation_id, dynamics_contact_id ON certjob.mentors
    FOR EACH ROW WHEN (
        (OLD.left_at, OLD.email, OLD.organisation_id, OLD.dynamics_contact_id)
        IS DISTINCT FROM (NEW.left_at, NEW.email, NEW.organisation_id, NEW.dynamics_contact_id)
    )
    EXECUTE FUNCTION certjob_private.mentor_updated();

-- A mentor can be deleted only if the portal hides them and no intent is open. A hide that is not confirmed is no
-- obstacle if another mentor has the contact now.
CREATE FUNCTION certjob_private.mentor_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
            SELECT FROM certjob.portal_sync_events
            WHERE mentor_id = OLD.id AND visible
                -- A push that is blocked because of a missing contact has no one to show.
                AND (status = 'pending' OR (status = 'blocked' AND OLD.dynamics_contact_id IS NOT NULL))
        )
        OR EXISTS (SELECT FROM certjob.cert_notification_log WHERE mentor_id = OLD.id AND status = 'pending')
    THEN
        RAISE EXCEPTION 'mentor % has open intents (a portal push or a reminder)', OLD.id
            USING ERRCODE = 'restrict_violation', HINT = 'set left_at, let certjob run, then delete';
    END IF;
    -- The alert ends with the row, and then no one would notice that the contact is visible.
    IF EXISTS (
        SELECT FROM certjob.portal_sync_events AS e
        WHERE e.mentor_id = OLD.id AND NOT e.visible
            AND (e.status IN ('pending', 'blocked') OR (e.status = 'withdrawn' AND NOT EXISTS (
                SELECT FROM certjob.portal_sync_events AS later WHERE later.mentor_id = OLD.id AND later.id > e.id
            )))
            AND (OLD.dynamics_contact_id IS NOT NULL OR NOT certjob_private.contact_is_taken(OLD.id))
    ) THEN
        RAISE EXCEPTION 'mentor % may still be shown on the portal, because a hide is not confirmed', OLD.id
            USING ERRCODE = 'restrict_violation', HINT = format('set left_at and run `certjob resync %s`; if certjob'
                ' cannot hide the contact, hide it and add --hidden-by-hand, then delete', OLD.id);
    END IF;
    -- A mentor who has moved to an organisation without a portal may have an older call in flight.
    IF EXISTS (
        SELECT FROM certjob.portal_sync_events
        WHERE mentor_id = OLD.id
            AND claim_token IS NOT NULL AND next_attempt_at > now()
            AND next_attempt_at <= now() + interval '25 hours'  -- longer than any lease: written by a wrong clock
    ) THEN
        RAISE EXCEPTION 'a call to the portal may be under way for mentor %', OLD.id
            USING ERRCODE = 'restrict_violation', HINT = 'delete in five minutes';
    END IF;
    IF OLD.portal_visible IS DISTINCT FROM false
        AND (OLD.portal_visible IS NULL OR OLD.dynamics_contact_id IS NOT NULL  -- otherwise there never was a contact
            OR EXISTS (SELECT FROM certjob.portal_sync_events WHERE mentor_id = OLD.id))
        AND (
            EXISTS (SELECT FROM certjob.organisations WHERE id = OLD.organisation_id AND portal IS NOT NULL)
            OR (  -- a former portal may show the mentor
                SELECT e.visible AND e.claim_contact_id IS NOT NULL AND e.shown_until >= current_date
                FROM certjob.portal_sync_events AS e WHERE e.mentor_id = OLD.id ORDER BY e.id DESC LIMIT 1
            )
        )
    THEN
        RAISE EXCEPTION 'mentor % may still be shown on the portal', OLD.id
            USING ERRCODE = 'restrict_violation', HINT = 'set left_at, let certjob run, then delete';
    END IF;
    DELETE FROM certjob.still_due WHERE mentor_id = OLD.id;
    DELETE FROM certjob.cert_notification_log
    WHERE mentor_id = OLD.id AND status <> 'sent' AND NOT history @> '[{"status": "sent"}]';
    UPDATE certjob.cert_notification_log AS l
    SET mentor_id = certjob_private.pseudonym(k.key, OLD.organisation_id, OLD.member_no)
    FROM certjob.mail_key AS k
    WHERE l.mentor_id = OLD.id;
    RETURN OLD;
END
$$;
CREATE TRIGGER mentor_deleted BEFORE DELETE ON certjob.mentors
    FOR EACH ROW EXECUTE FUNCTION certjob_private.mentor_deleted();

-- Some apps delete all profiles every day and enter them again. The mails of a mentor with the same number still count.
CREATE FUNCTION certjob_private.mentors_entered() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE certjob.cert_notification_log AS l
    SET mentor_id = n.id
    FROM entered AS n, certjob.mail_key AS k
    WHERE l.mentor_id = certjob_private.pseudonym(k.key, n.organisation_id, n.member_no);
    RETURN NULL;
END
$$;
CREATE TRIGGER mentors_entered AFTER INSERT ON certjob.mentors REFERENCING NEW TABLE AS entered
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.mentors_entered();

CREATE FUNCTION certjob_private.organisation_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM certjob_private.review_again(ARRAY(SELECT id FROM certjob.mentors WHERE organisation_id = NEW.id));
    IF OLD.portal IS DISTINCT FROM NEW.portal THEN  -- the state on another portal is unknown
        UPDATE certjob.mentors SET portal_visible = NULL
        WHERE organisation_id = NEW.id AND dynamics_contact_id IS NOT NULL;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER organisation_updated
    AFTER UPDATE OF reminder_thresholds, optional_kinds, portal ON certjob.organisations
    FOR EACH ROW WHEN (
        (OLD.reminder_thresholds, OLD.optional_kinds, OLD.portal)
        IS DISTINCT FROM (NEW.reminder_thresholds, NEW.optional_kinds, NEW.portal)
    )
    EXECUTE FUNCTION certjob_private.organisation_updated();

CREATE FUNCTION certjob_private.coordinator_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE certjob.coordinator_digests
    SET status = 'pending', attempts = 0, next_attempt_at = now(), claim_token = NULL, deferred_since = NULL
    WHERE coordinator_id = NEW.id AND status = 'failed';
    RETURN NULL;
END
$$;
CREATE TRIGGER coordinator_updated AFTER UPDATE OF email ON certjob.coordinators
    FOR EACH ROW WHEN (OLD.email IS DISTINCT FROM NEW.email) EXECUTE FUNCTION certjob_private.coordinator_updated();

-- Returns the facts of a mentor or certificate.
CREATE FUNCTION certjob_private.facts(of_row anyelement) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT jsonb_object_agg(f.key, f.value) FROM jsonb_each(to_jsonb(of_row)) AS f
    WHERE f.key = ANY ('{id,organisation_id,member_no,full_name,email,locale,dynamics_contact_id,left_at,mentor_id,kind,issued_on,
        expires_on,revoked_at}')
$$;

-- Records what `certjob load` changes. The command sets certjob.load_id in its transaction.
CREATE FUNCTION certjob_private.row_loaded() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO certjob.loaded_rows (load_id, loaded_by, mentor_id, certificate_id, before, after)
    VALUES (
        current_setting('certjob.load_id')::uuid, current_setting('certjob.loaded_by'),
        (to_jsonb(NEW) ->> TG_ARGV[0])::uuid, CASE WHEN TG_ARGV[0] = 'mentor_id' THEN NEW.id END,
        certjob_private.facts(OLD), certjob_private.facts(NEW)
    );
    RETURN NULL;
END
$$;
CREATE TRIGGER mentor_loaded
    AFTER INSERT OR UPDATE OF full_name, email, locale, dynamics_contact_id, left_at ON certjob.mentors
    FOR EACH ROW WHEN (current_setting('certjob.load_id', true) <> '') EXECUTE FUNCTION certjob_private.row_loaded('id');
CREATE TRIGGER certificate_loaded
    AFTER INSERT OR UPDATE OF expires_on, revoked_at ON certjob.certificates
    FOR EACH ROW WHEN (current_setting('certjob.load_id', true) <> '')
    EXECUTE FUNCTION certjob_private.row_loaded('mentor_id');

-- TRUNCATE fires no row trigger.
CREATE FUNCTION certjob_private.facts_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM certjob_private.review_again(ARRAY(SELECT id FROM certjob.mentors));
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_truncated AFTER TRUNCATE ON certjob.certificates
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.facts_truncated();
CREATE TRIGGER pauses_truncated AFTER TRUNCATE ON certjob.mentor_pauses
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.facts_truncated();

CREATE FUNCTION certjob_private.mentors_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
            SELECT FROM certjob.mentors AS m JOIN certjob.organisations AS o ON o.id = m.organisation_id
            WHERE o.portal IS NOT NULL AND m.portal_visible IS DISTINCT FROM false
        )
        OR EXISTS (SELECT FROM certjob.portal_sync_events WHERE status IN ('pending', 'blocked'))
        OR EXISTS (SELECT FROM certjob.cert_notification_log WHERE status = 'pending')
    THEN
        RAISE EXCEPTION
            'some mentors may still be shown on the portal, or have open intents (a portal push or a reminder)'
            USING ERRCODE = 'restrict_violation', HINT = 'set left_at for everyone, let certjob run, then truncate';
    END IF;
    DELETE FROM certjob.still_due;
    RETURN NULL;
END
$$;
CREATE TRIGGER mentors_truncated BEFORE TRUNCATE ON certjob.mentors
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.mentors_truncated();

-- Without its push, the state on the portal is unknown. The next review queues the value again.
CREATE FUNCTION certjob_private.portal_events_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    mentor_ids CONSTANT uuid[] := ARRAY(
        SELECT mentor_id FROM certjob.portal_sync_events WHERE status IN ('pending', 'blocked')
    );
BEGIN
    PERFORM certjob_private.review_again(mentor_ids);
    UPDATE certjob.mentors SET portal_visible = NULL WHERE id = ANY (mentor_ids);
    RETURN NULL;
END
$$;
CREATE TRIGGER portal_events_truncated BEFORE TRUNCATE ON certjob.portal_sync_events
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.portal_events_truncated();

-- Triggers limit the length of texts, because the error of a CHECK quotes the row (personal data) but not the limit.
CREATE FUNCTION certjob_private.reject_long_value() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '%.% is too long, at most % characters are allowed', TG_TABLE_NAME, TG_ARGV[0], TG_ARGV[1]
        USING ERRCODE = 'string_data_right_truncation', TABLE = TG_TABLE_NAME, COLUMN = TG_ARGV[0],
            CONSTRAINT = format('certjob_%s_%s_length', TG_TABLE_NAME, TG_ARGV[0]);
END
$$;
DO $$
DECLARE
    bounded record;
BEGIN
    FOR bounded IN
        SELECT b.of_table, b.most, of_column FROM (VALUES
            ('organisations', 1000, ARRAY['name', 'contact_email', 'contact_phone', 'renewal_url', 'sender']),
            ('organisations', 10000, ARRAY['optional_kinds']),
            ('coordinators', 1000, ARRAY['full_name', 'email']),
            ('mentors', 1000, ARRAY['full_name', 'email']),
            ('mentors', 200, ARRAY['member_no']),
            ('certificates', 200, ARRAY['kind']),
            ('mentor_pauses', 200, ARRAY['reason', 'actor', 'lifted_by'])
        ) AS b (of_table, most, of_columns), unnest(b.of_columns) AS of_column
    LOOP
        EXECUTE format(
            'CREATE TRIGGER %2$s_length BEFORE INSERT OR UPDATE OF %2$s ON certjob.%1$s FOR EACH ROW'
            ' WHEN (length(NEW.%2$s::text) > %3$s) EXECUTE FUNCTION certjob_private.reject_long_value(%2$L, %4$L)',
            bounded.of_table, bounded.of_column, bounded.most, to_char(bounded.most, 'FM99,999')
        );
    END LOOP;
END
$$;

-- The rules read only whether these columns are set, so a time in the future would take effect at once. The margins
-- cover clocks that differ, and a day of the programme that has not begun in UTC.
CREATE FUNCTION certjob_private.reject_future_time() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' OR to_jsonb(OLD) -> TG_ARGV[0] IS DISTINCT FROM to_jsonb(NEW) -> TG_ARGV[0] THEN
        RAISE EXCEPTION '%.% is in the future, but would take effect at once', TG_TABLE_NAME, TG_ARGV[0]
            USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, COLUMN = TG_ARGV[0],
                CONSTRAINT = format('certjob_%s_%s_future', TG_TABLE_NAME, TG_ARGV[0]), HINT = 'enter it on that day';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER paused_at_future BEFORE INSERT OR UPDATE OF paused_at ON certjob.mentor_pauses
    FOR EACH ROW WHEN (NEW.paused_at > now() + interval '1 hour')
    EXECUTE FUNCTION certjob_private.reject_future_time('paused_at');
CREATE TRIGGER lifted_at_future BEFORE INSERT OR UPDATE OF lifted_at ON certjob.mentor_pauses
    FOR EACH ROW WHEN (NEW.lifted_at > now() + interval '1 hour')
    EXECUTE FUNCTION certjob_private.reject_future_time('lifted_at');
CREATE TRIGGER left_at_future BEFORE INSERT OR UPDATE OF left_at ON certjob.mentors
    FOR EACH ROW WHEN (NEW.left_at > now() + interval '1 day')
    EXECUTE FUNCTION certjob_private.reject_future_time('left_at');
CREATE TRIGGER revoked_at_future BEFORE INSERT OR UPDATE OF revoked_at ON certjob.certificates
    FOR EACH ROW WHEN (NEW.revoked_at > now() + interval '1 day')
    EXECUTE FUNCTION certjob_private.reject_future_time('revoked_at');

-- Only certjob opens, lifts and deletes its own pauses: they keep the kinds that have lapsed, and no review would follow
-- a change that certjob signed. Policies do not apply to service_role. The condition is evaluated as the caller.
CREATE FUNCTION certjob_private.reject_own_pause() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION 'only the job opens, lifts and deletes a pause of certjob' USING ERRCODE = 'insufficient_privilege',
        HINT = 'write the person''s own name; `certjob unpause` and a certificate lift a pause of certjob';
END
$$;
CREATE TRIGGER opened_as_certjob BEFORE INSERT ON certjob.mentor_pauses
    FOR EACH ROW WHEN (current_user = 'service_role' AND NEW.actor = 'certjob')
    EXECUTE FUNCTION certjob_private.reject_own_pause();
CREATE TRIGGER lifted_as_certjob BEFORE UPDATE ON certjob.mentor_pauses
    FOR EACH ROW WHEN (current_user = 'service_role' AND 'certjob' IN (OLD.actor, NEW.lifted_by))
    EXECUTE FUNCTION certjob_private.reject_own_pause();
CREATE TRIGGER deleted_as_certjob BEFORE DELETE ON certjob.mentor_pauses
    FOR EACH ROW WHEN (current_user = 'service_role' AND OLD.actor = 'certjob' AND OLD.lifted_at IS NULL)
    EXECUTE FUNCTION certjob_private.reject_own_pause();
