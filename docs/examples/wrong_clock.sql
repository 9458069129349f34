-- After the database server's clock was ahead and has been corrected: makes the pushes and mails due that runs have
-- deferred to the wrong time, and ends these runs now. Run it as the owner of the tables, with `psql -f`.
WITH pushes AS (
    UPDATE certjob.portal_sync_events
    SET next_attempt_at = now(), wanted_at = least(wanted_at, now())
    WHERE next_attempt_at > now() + interval '25 hours'
), reminders AS (
    UPDATE certjob.cert_notification_log
    SET next_attempt_at = now(), queued_at = least(queued_at, now())
    WHERE next_attempt_at > now() + interval '25 hours'
), digests AS (
    UPDATE certjob.coordinator_digests
    SET next_attempt_at = now(), queued_at = least(queued_at, now())
    WHERE next_attempt_at > now() + interval '25 hours'
)
UPDATE certjob.job_runs
SET started_at = least(started_at, now()), last_seen_at = least(last_seen_at, now()),
    finished_at = CASE WHEN finished_at > now() THEN now() ELSE finished_at END
WHERE started_at > now() OR finished_at > now();
