-- What the coordinators' daily mail needs: what it told about, and quick answers to "has anything happened since?".

-- A digest tells what its snapshot showed and the one before had not told; told is the list of both, one line for each
-- thing, so that what was committed while it was written belongs to the next one, and what goes on is no news every day.
ALTER TABLE coordinator_digests
    ADD COLUMN covers_until timestamptz,
    ADD COLUMN told_on date,
    ADD COLUMN told text[] NOT NULL DEFAULT '{}',
    ADD COLUMN sent_number integer,
    ADD COLUMN maybe_sent boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN coordinator_digests.told_on IS 'the day as of which a sent one was written';
COMMENT ON COLUMN coordinator_digests.told IS 'everything that the coordinator knows once it was sent, by kind and id';
COMMENT ON COLUMN coordinator_digests.sent_number IS 'the coordinator''s sent ones in the order of sending, whatever clocks say';
CREATE INDEX coordinator_digests_sent_idx ON coordinator_digests (coordinator_id, sent_number DESC NULLS LAST)
    WHERE status = 'sent';
CREATE INDEX coordinator_digests_open_idx ON coordinator_digests (coordinator_id) WHERE status IN ('pending', 'failed');

CREATE INDEX mentor_pauses_own_paused_at_idx ON mentor_pauses (paused_at) WHERE reason = 'certification_expired';
CREATE INDEX mentor_pauses_own_lifted_at_idx ON mentor_pauses (lifted_at)
    WHERE reason = 'certification_expired' AND lifted_at IS NOT NULL;
CREATE INDEX certificates_expires_on_idx ON certificates (expires_on);

-- A corrected address is tried at once, as a mentor's is.
CREATE FUNCTION certjob_private.coordinator_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    UPDATE public.coordinator_digests
    SET status = 'pending', attempts = 0, next_attempt_at = now(), claim_token = NULL
    WHERE coordinator_id = NEW.id AND status = 'failed';
    RETURN NULL;
END
$$;

CREATE TRIGGER coordinator_updated AFTER UPDATE OF email ON coordinators
    FOR EACH ROW WHEN (OLD.email IS DISTINCT FROM NEW.email)
    EXECUTE FUNCTION certjob_private.coordinator_updated();
