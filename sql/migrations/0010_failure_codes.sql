-- Why a push or a message failed is a code (FailureCode in certjob/errors.py) beside the text: what a reader is told
-- follows from the code, in the reader's language, and the text can be worded anew. No CHECK: a code that this certjob
-- does not know was written by a newer one, and is read as none. The tables' grants and policies cover new columns.
ALTER TABLE portal_sync_events ADD COLUMN failure_code text;
ALTER TABLE dynamics_sync_failures ADD COLUMN failure_code text;
ALTER TABLE cert_notification_log ADD COLUMN failure_code text;
ALTER TABLE coordinator_digests ADD COLUMN failure_code text;
COMMENT ON COLUMN portal_sync_events.failure_code IS 'why last_error; counts only beside a last_error';
COMMENT ON COLUMN dynamics_sync_failures.failure_code IS 'why the last round failed, or why the stage ended before it';
COMMENT ON COLUMN cert_notification_log.failure_code IS 'why last_error; null: cancelled, or never failed';
COMMENT ON COLUMN coordinator_digests.failure_code IS 'why last_error; null: cancelled, or never failed';

-- What is open was written in certjob's own English. It is matched here for the last time, the first that fits.
CREATE FUNCTION certjob_private.failure_code_of(error text, kind text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN error = 'no address' THEN 'no_address'
        WHEN error LIKE 'the e-mail address %' THEN 'bad_address'
        WHEN error LIKE '%beyond ASCII before the @%' THEN 'address_not_supported'
        WHEN error LIKE 'the mail server refused the recipient%' THEN 'address_refused'
        WHEN error ~ '^the (mail server|webhook) refused the message|^the message has a header' THEN 'message_refused'
        WHEN error ~ '^the (mail server|webhook) put the \w+ off ' THEN 'deferred'
        WHEN error LIKE '%may have arrived%' THEN 'maybe_arrived'
        WHEN error LIKE '%no dynamics_contact_id%' THEN 'no_contact_id'
        WHEN kind = 'permanent' AND error LIKE '%contact_not_found%' THEN 'contact_not_found'
        WHEN kind = 'permanent' AND error LIKE '%invalid_request%' THEN 'invalid_request'
        WHEN kind = 'permanent' THEN 'dynamics_rejected'
        WHEN error LIKE '%CERTJOB_PORTAL_URL is not set%' THEN 'no_url'
        WHEN error LIKE '%in a row%' THEN 'breaker'
        WHEN error LIKE '%time for deliveries is over%' THEN 'deadline'
        WHEN error LIKE '%stood still%' THEN 'lease'
        WHEN error LIKE '%another run is in flight%' THEN 'in_flight'
        WHEN error LIKE '%asked to wait%' THEN 'retry_after'
        WHEN error LIKE '%unforeseen %' THEN 'crash'
        WHEN error ~ 'answered 40[13]\M' THEN 'portal_key_refused'
        WHEN error ~ 'answered 429\M' THEN 'portal_throttled'
        WHEN kind = 'stage' AND error !~ 'answered (408|425|5\d\d)\M' THEN 'portal_misconfigured'
        WHEN error LIKE '%portal answered %' THEN 'portal_failed'
        WHEN error ~ '^no connection to the portal|connection to the portal lost|answer from the portal|^the portal closed'
            THEN 'portal_no_answer'
    END
$$;
UPDATE dynamics_sync_failures
SET failure_code = certjob_private.failure_code_of(error, kind)
WHERE resolved_at IS NULL;
UPDATE portal_sync_events
SET failure_code = certjob_private.failure_code_of(
    last_error, CASE status WHEN 'blocked' THEN 'permanent' ELSE 'transient' END
)
WHERE status IN ('pending', 'blocked') AND last_error IS NOT NULL;
UPDATE cert_notification_log
SET failure_code = certjob_private.failure_code_of(last_error, 'message')
WHERE status IN ('pending', 'failed') AND last_error IS NOT NULL;
UPDATE coordinator_digests
SET failure_code = certjob_private.failure_code_of(last_error, 'message')
WHERE status IN ('pending', 'failed') AND last_error IS NOT NULL;
DROP FUNCTION certjob_private.failure_code_of(text, text);

-- The same rows as before, and the code last. Of an event it counts only beside the text: request_portal_resync takes
-- away the text alone.
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
    f.last_failed_at,
    CASE WHEN f.id IS NOT NULL THEN f.failure_code WHEN e.last_error IS NOT NULL THEN e.failure_code END AS code
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
LEFT JOIN dynamics_sync_failures AS f ON f.mentor_id = e.mentor_id AND f.resolved_at IS NULL
WHERE e.status IN ('pending', 'blocked')
    AND (f.id IS NOT NULL OR e.wanted_at < now() - interval '1 hour' OR e.wanted_at > now() + interval '1 hour')
ORDER BY e.visible, e.wanted_at, e.id;
