-- Whoever changes a fact, by whatever way, makes certjob look at that mentor again: review_on = -infinity.
--
-- The functions run as their owner with an empty search_path: as invoker they would silently miss mentors that
-- row-level security hides from the writer. The UPDATE of the mentor is never made conditional on its present
-- review_on: certjob may hold the row and be about to write a later date, and only waiting for it keeps the fact.

CREATE SCHEMA certjob_private;

CREATE FUNCTION certjob_private.certificates_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    -- Locked in one order, so that two bulk imports do not deadlock.
    PERFORM 1 FROM public.mentors WHERE id IN (SELECT mentor_id FROM changed_rows) ORDER BY id FOR NO KEY UPDATE;
    UPDATE public.mentors SET review_on = '-infinity' WHERE id IN (SELECT mentor_id FROM changed_rows);
    RETURN NULL;
END
$$;

CREATE TRIGGER certificates_inserted AFTER INSERT ON certificates
    REFERENCING NEW TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.certificates_inserted();

CREATE TRIGGER certificates_deleted AFTER DELETE ON certificates
    REFERENCING OLD TABLE AS changed_rows
    FOR EACH STATEMENT EXECUTE FUNCTION certjob_private.certificates_inserted();

CREATE FUNCTION certjob_private.certificate_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    PERFORM 1 FROM public.mentors WHERE id IN (OLD.mentor_id, NEW.mentor_id) ORDER BY id FOR NO KEY UPDATE;
    UPDATE public.mentors SET review_on = '-infinity' WHERE id IN (OLD.mentor_id, NEW.mentor_id);
    RETURN NULL;
END
$$;

-- The column list keeps certjob's own UPDATE of status from firing it.
CREATE TRIGGER certificate_updated AFTER UPDATE OF mentor_id, kind, issued_on, expires_on, revoked_at ON certificates
    FOR EACH ROW WHEN (
        (OLD.mentor_id, OLD.kind, OLD.issued_on, OLD.expires_on, OLD.revoked_at)
        IS DISTINCT FROM (NEW.mentor_id, NEW.kind, NEW.issued_on, NEW.expires_on, NEW.revoked_at)
    )
    EXECUTE FUNCTION certjob_private.certificate_updated();

CREATE FUNCTION certjob_private.pause_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        UPDATE public.mentors SET review_on = '-infinity' WHERE id = NEW.mentor_id;
    ELSIF TG_OP = 'DELETE' THEN
        UPDATE public.mentors SET review_on = '-infinity' WHERE id = OLD.mentor_id;
    ELSE
        PERFORM 1 FROM public.mentors WHERE id IN (OLD.mentor_id, NEW.mentor_id) ORDER BY id FOR NO KEY UPDATE;
        UPDATE public.mentors SET review_on = '-infinity' WHERE id IN (OLD.mentor_id, NEW.mentor_id);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER pause_opened AFTER INSERT ON mentor_pauses
    FOR EACH ROW WHEN (NEW.actor <> 'certjob') EXECUTE FUNCTION certjob_private.pause_changed();

CREATE TRIGGER pause_updated AFTER UPDATE OF mentor_id, reason, lifted_at ON mentor_pauses
    FOR EACH ROW WHEN (
        NEW.lifted_by IS DISTINCT FROM 'certjob'
        AND (OLD.mentor_id, OLD.reason, OLD.lifted_at) IS DISTINCT FROM (NEW.mentor_id, NEW.reason, NEW.lifted_at)
    )
    EXECUTE FUNCTION certjob_private.pause_changed();

-- A lifted pause says nothing about today: pruning old ones must not make a night look at everybody.
CREATE TRIGGER pause_deleted AFTER DELETE ON mentor_pauses
    FOR EACH ROW WHEN (OLD.lifted_at IS NULL) EXECUTE FUNCTION certjob_private.pause_changed();

CREATE FUNCTION certjob_private.mentor_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    NEW.review_on := '-infinity';
    IF OLD.dynamics_contact_id IS DISTINCT FROM NEW.dynamics_contact_id THEN
        NEW.portal_visible := NULL;  -- nobody knows what the portal shows for the other contact
    END IF;
    IF OLD.email IS DISTINCT FROM NEW.email THEN
        UPDATE public.cert_notification_log
        SET status = 'pending', attempts = 0, next_attempt_at = now(), claim_token = NULL
        WHERE mentor_id = NEW.id AND status = 'failed';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER mentor_updated BEFORE UPDATE OF left_at, email, organisation_id, dynamics_contact_id ON mentors
    FOR EACH ROW WHEN (
        (OLD.left_at, OLD.email, OLD.organisation_id, OLD.dynamics_contact_id)
        IS DISTINCT FROM (NEW.left_at, NEW.email, NEW.organisation_id, NEW.dynamics_contact_id)
    )
    EXECUTE FUNCTION certjob_private.mentor_updated();

CREATE FUNCTION certjob_private.mentor_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
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

CREATE TRIGGER mentor_deleted BEFORE DELETE ON mentors
    FOR EACH ROW EXECUTE FUNCTION certjob_private.mentor_deleted();

CREATE FUNCTION certjob_private.organisation_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
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

CREATE TRIGGER organisation_updated AFTER UPDATE OF reminder_thresholds, optional_kinds, portal ON organisations
    FOR EACH ROW WHEN (
        (OLD.reminder_thresholds, OLD.optional_kinds, OLD.portal)
        IS DISTINCT FROM (NEW.reminder_thresholds, NEW.optional_kinds, NEW.portal)
    )
    EXECUTE FUNCTION certjob_private.organisation_updated();
