-- Two mentors' contact ids may have been swapped, or a mentor moves away and back while a call is in flight. What must
-- not overlap are calls for one contact, whichever event they are for.
ALTER TABLE portal_sync_events ADD COLUMN claim_contact_id uuid;
COMMENT ON COLUMN portal_sync_events.claim_contact_id IS 'the contact that the call in flight is for, as read by the claim';
UPDATE portal_sync_events AS e  -- what the version before has in flight
SET claim_contact_id = m.dynamics_contact_id
FROM mentors AS m
WHERE m.id = e.mentor_id AND e.claim_token IS NOT NULL AND e.next_attempt_at > now();
CREATE INDEX portal_sync_events_in_flight_idx ON portal_sync_events (claim_contact_id) WHERE claim_token IS NOT NULL;

-- A corrected contact reopens what is open: it concerns another contact now. A call in flight for the old one does not
-- settle it, and what was blocked is tried again without waiting for the night.
CREATE OR REPLACE FUNCTION certjob_private.mentor_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    NEW.review_on := '-infinity';
    IF OLD.dynamics_contact_id IS DISTINCT FROM NEW.dynamics_contact_id THEN
        NEW.portal_visible := NULL;  -- nobody knows what the portal shows for the other contact
        IF NEW.dynamics_contact_id IS NOT NULL THEN
            UPDATE public.portal_sync_events
            SET version = version + 1,
                status = 'pending',
                attempts = 0,
                claim_token = CASE WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN claim_token END,
                next_attempt_at = CASE
                    WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN next_attempt_at ELSE now()
                END
            WHERE mentor_id = NEW.id AND status IN ('pending', 'blocked');
        END IF;
    END IF;
    IF OLD.email IS DISTINCT FROM NEW.email THEN
        UPDATE public.cert_notification_log
        SET status = 'pending', attempts = 0, next_attempt_at = now(), claim_token = NULL
        WHERE mentor_id = NEW.id AND status = 'failed';
    END IF;
    RETURN NEW;
END
$$;

-- A wish from the future was written by a server whose clock was wrong: it must not hide from the alerts until then.
CREATE OR REPLACE VIEW portal_alerts WITH (security_invoker = true) AS
SELECT
    e.id AS event_id,
    e.mentor_id,
    m.organisation_id,
    m.member_no,
    coalesce(m.full_name, m.member_no) AS full_name,
    e.visible,
    CASE WHEN e.visible
        THEN 'Dynamics sync pending — mentor may still be hidden on portal'
        ELSE 'Dynamics sync pending — mentor may still be visible on portal'
    END AS sentence,
    coalesce(f.error, e.last_error) AS error,
    coalesce(f.attempts, 0) AS attempts,
    e.wanted_at,
    f.last_failed_at
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
LEFT JOIN dynamics_sync_failures AS f ON f.mentor_id = e.mentor_id AND f.resolved_at IS NULL
WHERE e.status IN ('pending', 'blocked')
    AND (f.id IS NOT NULL OR e.wanted_at < now() - interval '1 hour' OR e.wanted_at > now() + interval '1 hour')
ORDER BY e.visible, e.wanted_at, e.id;
