-- As in 0003, and not while a call for the mentor is under way. Who has moved to an organisation without a portal may have
-- one still, of an event that was withdrawn: its lease would go with the mentor, and whoever the contact is entered for
-- anew could be called for beside it.
CREATE OR REPLACE FUNCTION certjob_private.mentor_deleted() RETURNS trigger
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
    IF EXISTS (
        SELECT FROM public.portal_sync_events
        WHERE mentor_id = OLD.id
            AND claim_token IS NOT NULL
            AND next_attempt_at > now()
            -- No lease is so long: it was written by a server whose clock was wrong.
            AND next_attempt_at <= now() + interval '25 hours'
    )
    THEN
        RAISE EXCEPTION 'a call to the portal may be under way for mentor %', OLD.id
            USING ERRCODE = 'restrict_violation',
                  HINT = 'delete in five minutes';
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
