-- The order of delivery is new: untried hides, untried shows, retried hides, retried shows. Without an index of its own
-- every claim would sort all that is due.
DROP INDEX portal_sync_events_due_idx;
CREATE INDEX portal_sync_events_due_idx ON portal_sync_events ((attempts > 0), visible, next_attempt_at)
    WHERE status = 'pending';

-- When a call ended whose outcome nobody knows: its value may be applied minutes later, after the opposite one was
-- confirmed. It concerns the contact that was called for (claim_contact_id), whichever event is pushed for that next.
ALTER TABLE portal_sync_events ADD COLUMN unknown_shown_at timestamptz;
ALTER TABLE portal_sync_events ADD COLUMN unknown_hidden_at timestamptz;
COMMENT ON COLUMN portal_sync_events.unknown_shown_at IS 'when a call to show ended whose outcome nobody knows';
COMMENT ON COLUMN portal_sync_events.unknown_hidden_at IS 'when a call to hide ended whose outcome nobody knows';
CREATE INDEX portal_sync_events_unknown_idx ON portal_sync_events (claim_contact_id)
    WHERE unknown_shown_at IS NOT NULL OR unknown_hidden_at IS NOT NULL;
