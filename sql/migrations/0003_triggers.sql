-- Every change of a fact makes certjob review the mentor again (review_on = -infinity), whoever makes it.
--
-- The functions run as their owner. As the caller they would silently miss mentors whom row-level security hides. They
-- name every schema, and pg_temp comes last: otherwise a temporary type of the caller, such as uuid, would be found
-- first and could run code as the owner.
--
-- The UPDATE of a mentor never depends on the present review_on. certjob may hold the row and be about to write a later
-- day; only waiting for that lock keeps the new fact.


-- Certificates ------------------------------------------------------------------------------------------------------

-- Limits the work of one review. The caller has locked the mentors, so that two transactions count one after the other.
CREATE FUNCTION certjob_private.refuse_too_many_certificates(mentor_ids uuid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    crowded CONSTANT uuid := (
        SELECT given.id
        FROM unnest(mentor_ids) AS given (id)
        WHERE EXISTS (SELECT FROM certjob.certificates AS c WHERE c.mentor_id = given.id OFFSET 200)
        LIMIT 1
    );
BEGIN
    IF crowded IS NOT NULL THEN
        RAISE EXCEPTION 'mentor % would have more than 200 certificates', crowded
            USING ERRCODE = 'check_violation', CONSTRAINT = 'certjob_certificates_per_mentor';
    END IF;
END
$$;

CREATE FUNCTION certjob_private.certificates_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Locked in one order, so that two bulk imports do not deadlock.
    PERFORM 1 FROM certjob.mentors WHERE id IN (SELECT mentor_id FROM changed_rows) ORDER BY id FOR NO KEY UPDATE;
    IF TG_OP = 'INSERT' THEN
        PERFORM certjob_private.refuse_too_many_certificates(ARRAY(SELECT DISTINCT mentor_id FROM changed_rows));
    END IF;
    UPDATE certjob.mentors SET review_on = '-infinity' WHERE id IN (SELECT mentor_id FROM changed_rows);
    RETURN NULL;
END
$$;
CREATE TRIGGER certificates_inserted AFTER INSERT ON certjob.certificates
    REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.certificates_inserted();
CREATE TRIGGER certificates_deleted AFTER DELETE ON certjob.certificates
    REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.certificates_inserted();

-- certjob's own UPDATE of status does not fire it.
CREATE FUNCTION certjob_private.certificate_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM 1 FROM certjob.mentors WHERE id IN (OLD.mentor_id, NEW.mentor_id) ORDER BY id FOR NO KEY UPDATE;
    IF NEW.mentor_id <> OLD.mentor_id THEN
        PERFORM certjob_private.refuse_too_many_certificates(ARRAY[NEW.mentor_id]);
    END IF;
    UPDATE certjob.mentors SET review_on = '-infinity' WHERE id IN (OLD.mentor_id, NEW.mentor_id);
    RETURN NULL;
END
$$;
CREATE TRIGGER certificate_updated
    AFTER UPDATE OF mentor_id, kind, issued_on, expires_on, revoked_at ON certjob.certificates
    FOR EACH ROW WHEN (
        (OLD.mentor_id, OLD.kind, OLD.issued_on, OLD.expires_on, OLD.revoked_at)
        IS DISTINCT FROM (NEW.mentor_id, NEW.kind, NEW.issued_on, NEW.expires_on, NEW.revoked_at)
    )
    EXECUTE FUNCTION certjob_private.certificate_updated();


-- Pauses ------------------------------------------------------------------------------------------------------------

CREATE FUNCTION certjob_private.pause_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE certjob.mentors SET review_on = '-infinity' WHERE id = NEW.mentor_id;
    ELSIF TG_OP = 'DELETE' THEN
        UPDATE certjob.mentors SET review_on = '-infinity' WHERE id = OLD.mentor_id;
        RETURN NULL;
    ELSE
        PERFORM 1 FROM certjob.mentors WHERE id IN (OLD.mentor_id, NEW.mentor_id) ORDER BY id FOR NO KEY UPDATE;
        UPDATE certjob.mentors SET review_on = '-infinity' WHERE id IN (OLD.mentor_id, NEW.mentor_id);
    END IF;
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
-- A lifted pause says nothing about today, so its deletion causes no review.
CREATE TRIGGER pause_deleted AFTER DELETE ON certjob.mentor_pauses
    FOR EACH ROW WHEN (OLD.lifted_at IS NULL) EXECUTE FUNCTION certjob_private.pause_changed();


-- Mentors -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION certjob_private.mentor_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.review_on := '-infinity';
    IF OLD.dynamics_contact_id IS DISTINCT FROM NEW.dynamics_contact_id THEN
        NEW.portal_visible := NULL;  -- no one knows what the portal shows for the new contact
        -- If the portal hides the removed contact, there is nothing left to push.
        IF NEW.dynamics_contact_id IS NULL AND (
            SELECT NOT e.visible AND e.status = 'delivered' AND e.claim_contact_id = OLD.dynamics_contact_id
            FROM certjob.portal_sync_events AS e
            WHERE e.mentor_id = NEW.id
            ORDER BY e.id DESC
            LIMIT 1
        )
        THEN
            NEW.portal_visible := false;
        END IF;
        -- An open push is for the new contact now. A call in flight for the old contact keeps its lease, but cannot
        -- settle the row, because the version is newer.
        IF NEW.dynamics_contact_id IS NOT NULL THEN
            UPDATE certjob.portal_sync_events
            SET version = version + 1,
                status = 'pending',
                attempts = 0,
                moved_from = NULL,
                claim_token = CASE WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN claim_token END,
                next_attempt_at = CASE
                    WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN next_attempt_at ELSE now()
                END
            WHERE mentor_id = NEW.id AND status IN ('pending', 'blocked');
        END IF;
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

-- A mentor can be deleted only when the portal shows them no longer and nothing is on its way.
CREATE FUNCTION certjob_private.mentor_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (
            SELECT FROM certjob.portal_sync_events
            WHERE mentor_id = OLD.id
                -- A push that is blocked because there is no contact has nothing to hide.
                AND (status = 'pending' OR (status = 'blocked' AND OLD.dynamics_contact_id IS NOT NULL))
        )
        OR EXISTS (SELECT FROM certjob.cert_notification_log WHERE mentor_id = OLD.id AND status = 'pending')
    THEN
        RAISE EXCEPTION 'mentor % has open intents (a portal push or a reminder)', OLD.id
            USING ERRCODE = 'restrict_violation', HINT =
                'set left_at (and dynamics_contact_id to null if the contact is gone), let certjob run, then delete';
    END IF;
    -- A mentor who moved to an organisation without a portal may have a call in flight from before.
    IF EXISTS (
        SELECT FROM certjob.portal_sync_events
        WHERE mentor_id = OLD.id
            AND claim_token IS NOT NULL
            AND next_attempt_at > now()
            AND next_attempt_at <= now() + interval '25 hours'  -- longer than any lease: written by a wrong clock
    )
    THEN
        RAISE EXCEPTION 'a call to the portal may be under way for mentor %', OLD.id
            USING ERRCODE = 'restrict_violation', HINT = 'delete in five minutes';
    END IF;
    IF OLD.portal_visible IS DISTINCT FROM false
        AND EXISTS (SELECT FROM certjob.organisations WHERE id = OLD.organisation_id AND portal IS NOT NULL)
    THEN
        RAISE EXCEPTION 'mentor % may still be shown on the portal', OLD.id
            USING ERRCODE = 'restrict_violation', HINT = 'set left_at, let certjob run, then delete';
    END IF;
    RETURN OLD;
END
$$;
CREATE TRIGGER mentor_deleted BEFORE DELETE ON certjob.mentors
    FOR EACH ROW EXECUTE FUNCTION certjob_private.mentor_deleted();


-- Organisations and coordinators ------------------------------------------------------------------------------------

CREATE FUNCTION certjob_private.organisation_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- Locked in one order, so that it does not deadlock with bulk imports.
    PERFORM 1 FROM certjob.mentors WHERE organisation_id = NEW.id ORDER BY id FOR NO KEY UPDATE;
    UPDATE certjob.mentors
    SET review_on = '-infinity',
        -- No one knows what another portal shows. A mentor without a contact is on none.
        portal_visible = CASE
            WHEN OLD.portal IS NOT DISTINCT FROM NEW.portal OR dynamics_contact_id IS NULL THEN portal_visible
        END
    WHERE organisation_id = NEW.id;
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
    SET status = 'pending', attempts = 0, next_attempt_at = now(), claim_token = NULL
    WHERE coordinator_id = NEW.id AND status = 'failed';
    RETURN NULL;
END
$$;
CREATE TRIGGER coordinator_updated AFTER UPDATE OF email ON certjob.coordinators
    FOR EACH ROW WHEN (OLD.email IS DISTINCT FROM NEW.email) EXECUTE FUNCTION certjob_private.coordinator_updated();


-- TRUNCATE, which fires no row trigger --------------------------------------------------------------------------------

CREATE FUNCTION certjob_private.facts_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM 1 FROM certjob.mentors ORDER BY id FOR NO KEY UPDATE;
    UPDATE certjob.mentors SET review_on = '-infinity';
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
            SELECT
            FROM certjob.mentors AS m
            JOIN certjob.organisations AS o ON o.id = m.organisation_id
            WHERE o.portal IS NOT NULL AND m.portal_visible IS DISTINCT FROM false
        )
        OR EXISTS (SELECT FROM certjob.portal_sync_events WHERE status IN ('pending', 'blocked'))
        OR EXISTS (SELECT FROM certjob.cert_notification_log WHERE status = 'pending')
    THEN
        RAISE EXCEPTION
            'some mentors may still be shown on the portal, or have open intents (a portal push or a reminder)'
            USING ERRCODE = 'restrict_violation', HINT = 'set left_at for everybody, let certjob run, then truncate';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER mentors_truncated BEFORE TRUNCATE ON certjob.mentors
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.mentors_truncated();

-- Without the push no one knows what the portal shows: the next review queues the value again.
CREATE FUNCTION certjob_private.portal_events_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM 1
    FROM certjob.mentors
    WHERE id IN (SELECT mentor_id FROM certjob.portal_sync_events WHERE status IN ('pending', 'blocked'))
    ORDER BY id
    FOR NO KEY UPDATE;
    UPDATE certjob.mentors SET portal_visible = NULL, review_on = '-infinity'
    WHERE id IN (SELECT mentor_id FROM certjob.portal_sync_events WHERE status IN ('pending', 'blocked'));
    RETURN NULL;
END
$$;
CREATE TRIGGER portal_events_truncated BEFORE TRUNCATE ON certjob.portal_sync_events
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.portal_events_truncated();


-- The length of texts -------------------------------------------------------------------------------------------------

-- A trigger instead of a CHECK, because its error names the column and the limit, and quotes no personal data.
CREATE FUNCTION certjob_private.refuse_long_value() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '%.% is too long, at most % are allowed', TG_TABLE_NAME, TG_ARGV[0], TG_ARGV[1]
        USING ERRCODE = 'string_data_right_truncation', TABLE = TG_TABLE_NAME, COLUMN = TG_ARGV[0],
            CONSTRAINT = format('certjob_%s_%s_length', TG_TABLE_NAME, TG_ARGV[0]);
END
$$;
CREATE TRIGGER name_length BEFORE INSERT OR UPDATE OF name ON certjob.organisations FOR EACH ROW
    WHEN (length(NEW.name) > 1000) EXECUTE FUNCTION certjob_private.refuse_long_value('name', '1,000 characters');
CREATE TRIGGER contact_email_length BEFORE INSERT OR UPDATE OF contact_email ON certjob.organisations FOR EACH ROW
    WHEN (length(NEW.contact_email) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('contact_email', '1,000 characters');
CREATE TRIGGER contact_phone_length BEFORE INSERT OR UPDATE OF contact_phone ON certjob.organisations FOR EACH ROW
    WHEN (length(NEW.contact_phone) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('contact_phone', '1,000 characters');
CREATE TRIGGER renewal_url_length BEFORE INSERT OR UPDATE OF renewal_url ON certjob.organisations FOR EACH ROW
    WHEN (length(NEW.renewal_url) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('renewal_url', '1,000 characters');
CREATE TRIGGER sender_length BEFORE INSERT OR UPDATE OF sender ON certjob.organisations FOR EACH ROW
    WHEN (length(NEW.sender) > 1000) EXECUTE FUNCTION certjob_private.refuse_long_value('sender', '1,000 characters');
CREATE TRIGGER optional_kinds_length BEFORE INSERT OR UPDATE OF optional_kinds ON certjob.organisations FOR EACH ROW
    WHEN (length(array_to_string(NEW.optional_kinds, '')) > 10000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('optional_kinds', '10,000 characters');
CREATE TRIGGER full_name_length BEFORE INSERT OR UPDATE OF full_name ON certjob.coordinators FOR EACH ROW
    WHEN (length(NEW.full_name) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('full_name', '1,000 characters');
CREATE TRIGGER email_length BEFORE INSERT OR UPDATE OF email ON certjob.coordinators FOR EACH ROW
    WHEN (length(NEW.email) > 1000) EXECUTE FUNCTION certjob_private.refuse_long_value('email', '1,000 characters');
CREATE TRIGGER member_no_length BEFORE INSERT OR UPDATE OF member_no ON certjob.mentors FOR EACH ROW
    WHEN (length(NEW.member_no) > 200)
    EXECUTE FUNCTION certjob_private.refuse_long_value('member_no', '200 characters');
CREATE TRIGGER full_name_length BEFORE INSERT OR UPDATE OF full_name ON certjob.mentors FOR EACH ROW
    WHEN (length(NEW.full_name) > 1000)
    EXECUTE FUNCTION certjob_private.refuse_long_value('full_name', '1,000 characters');
CREATE TRIGGER email_length BEFORE INSERT OR UPDATE OF email ON certjob.mentors FOR EACH ROW
    WHEN (length(NEW.email) > 1000) EXECUTE FUNCTION certjob_private.refuse_long_value('email', '1,000 characters');
CREATE TRIGGER kind_length BEFORE INSERT OR UPDATE OF kind ON certjob.certificates FOR EACH ROW
    WHEN (length(NEW.kind) > 200) EXECUTE FUNCTION certjob_private.refuse_long_value('kind', '200 characters');
CREATE TRIGGER reason_length BEFORE INSERT OR UPDATE OF reason ON certjob.mentor_pauses FOR EACH ROW
    WHEN (length(NEW.reason) > 200) EXECUTE FUNCTION certjob_private.refuse_long_value('reason', '200 characters');
CREATE TRIGGER actor_length BEFORE INSERT OR UPDATE OF actor ON certjob.mentor_pauses FOR EACH ROW
    WHEN (length(NEW.actor) > 200) EXECUTE FUNCTION certjob_private.refuse_long_value('actor', '200 characters');
CREATE TRIGGER lifted_by_length BEFORE INSERT OR UPDATE OF lifted_by ON certjob.mentor_pauses FOR EACH ROW
    WHEN (length(NEW.lifted_by) > 200)
    EXECUTE FUNCTION certjob_private.refuse_long_value('lifted_by', '200 characters');
