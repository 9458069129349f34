-- What the coordinators' daily mail needs: what it told about, and quick answers to "has anything happened since?".

-- A digest tells of everything in (covers_from, covers_until]; the next one begins where the last sent one ended.
ALTER TABLE coordinator_digests
    ADD COLUMN covers_until timestamptz,
    ADD COLUMN maybe_sent boolean NOT NULL DEFAULT false;
CREATE INDEX coordinator_digests_sent_idx ON coordinator_digests (coordinator_id, covers_until) WHERE status = 'sent';

CREATE INDEX mentor_pauses_own_paused_at_idx ON mentor_pauses (paused_at) WHERE reason = 'certification_expired';
CREATE INDEX mentor_pauses_own_lifted_at_idx ON mentor_pauses (lifted_at)
    WHERE reason = 'certification_expired' AND lifted_at IS NOT NULL;
CREATE INDEX certificates_expires_on_idx ON certificates (expires_on);
