-- name: start_job_run
-- Written before anything else, so that a run that dies shows.
INSERT INTO job_runs (id, command, as_of, organisation, host, version)
VALUES (%(id)s, %(command)s, %(today)s, %(organisation)s, %(host)s, %(version)s)

-- name: heal_wrong_clock
-- No delay and no lease is longer than a day: what is due beyond that was written by a server whose clock was wrong, and
-- would wait for months. It is due now, with its token: whoever claims it says that it may be a repeat. The time of a value
-- goes back as well, so that it is an alert in its time. A row that another session holds is left for the next run.
WITH pushes AS (
    SELECT id
    FROM portal_sync_events
    WHERE next_attempt_at > now() + interval '25 hours' AND (status = 'pending' OR claim_token IS NOT NULL)
    ORDER BY mentor_id
    FOR NO KEY UPDATE SKIP LOCKED
), pushes_healed AS (
    UPDATE portal_sync_events AS e
    SET next_attempt_at = now(), wanted_at = least(e.wanted_at, now())
    FROM pushes
    WHERE e.id = pushes.id
), reminders AS (
    SELECT id
    FROM cert_notification_log
    WHERE status = 'pending' AND next_attempt_at > now() + interval '25 hours'
    ORDER BY mentor_id, threshold_days, cert_id
    FOR NO KEY UPDATE SKIP LOCKED
), reminders_healed AS (
    UPDATE cert_notification_log AS l
    SET next_attempt_at = now(), queued_at = least(l.queued_at, now())
    FROM reminders
    WHERE l.id = reminders.id
), digests AS (
    SELECT id
    FROM coordinator_digests
    WHERE status = 'pending' AND next_attempt_at > now() + interval '25 hours'
    ORDER BY id
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE coordinator_digests AS d
SET next_attempt_at = now(), queued_at = least(d.queued_at, now())
FROM digests
WHERE d.id = digests.id

-- name: heal_later_runs
-- Somebody has said that the later dates were wrong ones. If the server's clock was wrong as well, these runs ended in the
-- future and would be the last ones until then: they ended before this run began.
UPDATE job_runs AS wrong
SET started_at = least(wrong.started_at, own.started_at - interval '1 second'),
    last_seen_at = least(wrong.last_seen_at, own.started_at - interval '1 second'),
    finished_at = least(wrong.finished_at, own.started_at - interval '1 second')
FROM job_runs AS own
WHERE own.id = %(id)s AND wrong.as_of > own.as_of AND wrong.finished_at > now()

-- name: touch_job_run
-- A run says that it is alive: one that says nothing for long, and has not finished, has died.
UPDATE job_runs SET last_seen_at = now() WHERE id = %(id)s AND finished_at IS NULL

-- name: finish_job_run
-- The end of a run, whatever it was.
UPDATE job_runs
SET finished_at = now(), last_seen_at = now(), outcome = %(outcome)s, counts = %(counts)s
WHERE id = %(id)s

-- name: read_last_stops
-- Why stages stopped in the most recently finished delivery: a cron line every 15 minutes does not repeat itself.
SELECT counts -> 'stop_codes'
FROM job_runs
WHERE command IN ('run', 'deliver') AND finished_at IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1

-- name: read_last_report
-- The last night (over the same organisations) that reported what needs attention: its day, and when it looked.
SELECT as_of, (counts ->> 'alerts_read_at')::timestamptz
FROM job_runs
WHERE command = 'run'
    AND organisation IS NOT DISTINCT FROM %(organisation)s::text
    AND finished_at IS NOT NULL
    AND counts ->> 'alerts_read_at' IS NOT NULL
ORDER BY finished_at DESC
LIMIT 1
