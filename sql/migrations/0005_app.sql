-- The functions that the app calls.

-- Returns the organisation of the coordinator who asks, or null. It runs as its owner, because a policy on coordinators
-- that reads coordinators would call itself. Only policies call it: nobody else may use its schema.
CREATE FUNCTION certjob_private.coordinator_organisation_id() RETURNS uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT c.organisation_id FROM certjob.coordinators AS c WHERE c.id = (SELECT auth.uid()));
END
$$;

-- Returns the id of the app's user who asks. auth.uid() is looked up when it is called: PostgreSQL outside Supabase has
-- no such function.
CREATE FUNCTION certjob_private.user_id() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN auth.uid()::text;
END
$$;

-- The app's "try again now". It does to the mentor's push what `certjob resync` does; the next `certjob deliver` makes
-- the call. It does not review the mentor, so it never shows a mentor about whom certjob has yet to decide.
CREATE FUNCTION certjob.request_portal_resync(
    mentor_id uuid, OUT event_id bigint, OUT event_version integer, OUT visible boolean, OUT in_flight boolean
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'  -- otherwise the caller's zone decides on current_date
AS $$
#variable_conflict use_column
DECLARE
    mentor record;
    organisation record;
    wanted boolean;
BEGIN
    -- Locks the mentor before the event, as certjob does. Then reads the organisation, in a newer snapshot: a change of
    -- its rules holds the locks of its mentors.
    SELECT m.id, m.organisation_id, m.left_at, m.portal_visible, m.review_on
    INTO mentor
    FROM certjob.mentors AS m
    WHERE m.id = request_portal_resync.mentor_id
        AND m.organisation_id = (SELECT certjob_private.coordinator_organisation_id())
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN  -- the same error whether the mentor exists or not
        RAISE EXCEPTION 'only a coordinator of the mentor''s organisation may ask for a resync'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT o.name, o.portal, o.optional_kinds
    INTO organisation
    FROM certjob.organisations AS o
    WHERE o.id = mentor.organisation_id;
    IF organisation.portal IS NULL THEN
        RAISE EXCEPTION '% has no portal, so there is nothing to push for this mentor', organisation.name;
    END IF;

    wanted := coalesce(mentor.portal_visible, (
        SELECT e.visible FROM certjob.portal_sync_events AS e
        WHERE e.mentor_id = mentor.id AND e.status IN ('pending', 'blocked')
    ));
    IF mentor.left_at IS NOT NULL
        OR EXISTS (SELECT FROM certjob.mentor_pauses AS p WHERE p.mentor_id = mentor.id AND p.lifted_at IS NULL)
    THEN
        wanted := false;
    ELSIF wanted IS NOT FALSE AND (wanted IS NULL OR mentor.review_on <= current_date) THEN
        -- No review has seen these facts. They must prove a certificate, with a day's margin for time zones.
        wanted := true;
        IF EXISTS (
            SELECT FROM certjob.certificates AS held
            WHERE held.mentor_id = mentor.id
                AND (held.revoked_at IS NOT NULL OR held.issued_on <= current_date + 1)
                AND held.kind <> ALL (organisation.optional_kinds)
                AND NOT EXISTS (
                    SELECT FROM certjob.certificates AS c
                    WHERE c.mentor_id = mentor.id AND c.kind = held.kind AND c.revoked_at IS NULL
                        AND c.issued_on < current_date AND c.expires_on > current_date
                )
        ) THEN
            RAISE EXCEPTION 'this mentor waits for a review, so nobody knows yet whether to show or to hide them'
                USING HINT = 'the next `certjob run` decides and pushes; `certjob resync` does so at once';
        END IF;
    END IF;

    UPDATE certjob.mentors AS m SET portal_visible = wanted
    WHERE m.id = mentor.id AND m.portal_visible IS DISTINCT FROM wanted;
    -- As the statement queue_portal_events.
    INSERT INTO certjob.portal_sync_events AS e (mentor_id, visible)
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
