-- name: count_old_sync_failures
-- Failures that were resolved long ago; never an unresolved one. That certjob resolves by UPDATE is for
-- dashboards, which see what is new; a row as old as this is on none, and its DELETE tells Realtime no more than a number.
SELECT count(*)
FROM dynamics_sync_failures AS r
WHERE greatest(r.resolved_at, r.last_failed_at) < %(before)s AND r.resolved_at IS NOT NULL

-- name: count_old_portal_events
-- Events that are done. Never an open one, nor one whose call may still be in flight, nor one that an
-- unresolved failure is about. Of each mentor the last confirmation of either value stays: it is what the portal is known to
-- show, and `reconcile` shows only whom certjob has shown before.
SELECT count(*)
FROM portal_sync_events AS r
WHERE r.status IN ('delivered', 'withdrawn')
    AND greatest(r.wanted_at, r.next_attempt_at, r.delivered_at) < %(before)s
    AND NOT EXISTS (
        SELECT FROM dynamics_sync_failures AS f WHERE f.event_id = r.id AND f.resolved_at IS NULL
    )
    AND NOT (
        r.delivered_at IS NOT NULL
        AND NOT EXISTS (
            SELECT
            FROM portal_sync_events AS newer
            WHERE newer.mentor_id = r.mentor_id
                AND newer.visible = r.visible
                AND newer.status = 'delivered'
                AND (newer.delivered_at, newer.id) > (r.delivered_at, r.id)
        )
    )

-- name: count_old_transitions
-- The audit. While a certificate exists, the last time it came into its present status stays: `explain`
-- tells since when it is what it is.
SELECT count(*)
FROM certificate_transitions AS r
WHERE r.at < %(before)s
    AND r.as_of < %(before_on)s
    AND NOT EXISTS (
        SELECT
        FROM certificates AS c
        WHERE c.id = r.certificate_id
            AND c.mentor_id = r.mentor_id
            AND c.status = r.to_status
            AND NOT EXISTS (
                SELECT
                FROM certificate_transitions AS newer
                WHERE newer.mentor_id = r.mentor_id
                    AND newer.certificate_id = r.certificate_id
                    AND newer.to_status = r.to_status
                    AND newer.id > r.id
            )
    )

-- name: count_old_reminders
-- Reminders that nothing can ever ask about again. A row is the memory that a mail about this threshold and
-- a date went out, and it must outlive every day on which that mail could be due: for a threshold t >= 0 the last one is
-- the date itself, for t < 0 it is -t + 14 days later. So a row goes only when every date that it knows, those of earlier
-- cycles too, lies more than -t days before the limit, and the limit is at least 90 days ago. Whatever date the
-- certificate has or is given later is then either one of those, and too late to be mailed about, or one that the row
-- knows nothing of, which is mailed about with the row or without it. Neither pending nor failed rows go.
SELECT count(*)
FROM cert_notification_log AS r
WHERE r.status IN ('sent', 'cancelled', 'superseded')
    AND greatest(r.queued_at, r.sent_at, r.next_attempt_at) < %(before)s
    AND r.expires_on < %(before_on)s::date - greatest(-r.threshold_days, 0)
    AND NOT EXISTS (
        SELECT
        FROM jsonb_array_elements(r.history) AS cycle
        WHERE (cycle ->> 'expires_on')::date >= %(before_on)s::date - greatest(-r.threshold_days, 0)
    )

-- name: count_old_digests
-- Digests that are done. Of each coordinator the last sent one stays, by every measure (its day, its
-- number, until when it told): the next one begins where it ended.
SELECT count(*)
FROM coordinator_digests AS r
WHERE r.status IN ('sent', 'cancelled', 'superseded')
    AND greatest(r.queued_at, r.sent_at, r.next_attempt_at, r.covers_until) < %(before)s
    AND r.digest_on < %(before_on)s
    AND NOT (
        r.status = 'sent'
        AND NOT EXISTS (
            SELECT
            FROM coordinator_digests AS newer
            WHERE newer.coordinator_id = r.coordinator_id
                AND newer.status = 'sent'
                AND newer.digest_on > r.digest_on
                AND newer.covers_until >= coalesce(r.covers_until, '-infinity')
                AND coalesce(newer.sent_number, 0) >= coalesce(r.sent_number, 0)
        )
    )

-- name: count_old_job_runs
-- The ledger of runs, but for what find_kept_job_runs has found. A row about a day that is still to come is
-- the memory of a wrong clock, and stays until then. A run that has neither ended nor been seen for so long has died.
SELECT count(*)
FROM job_runs AS r
WHERE greatest(r.started_at, r.last_seen_at, r.finished_at) < %(before)s
    AND r.as_of < %(before_on)s
    AND r.id <> ALL (%(kept)s)

-- name: find_kept_job_runs
-- What is read of old rows of the ledger, and so stays: of each kind of run, and of each way in which it ended, the last
-- one (what was the last night, the last good one, why did it stop), and the one that began last, which is the full
-- night that made good for a wrong clock before it. Read once: what comes meanwhile is too young to go.
(
    SELECT DISTINCT ON (k.command, k.organisation, k.outcome) k.id
    FROM job_runs AS k
    WHERE k.finished_at IS NOT NULL
    ORDER BY k.command, k.organisation, k.outcome, k.finished_at DESC
)
UNION
(
    SELECT DISTINCT ON (k.command, k.organisation) k.id
    FROM job_runs AS k
    ORDER BY k.command, k.organisation, k.started_at DESC
)

-- name: find_limit_of_age
-- An age is calendar time, in the programme's time zone: three years are three years, whatever lies between.
SELECT now() AS now, (now() AT TIME ZONE %(zone)s - %(age)s::interval) AT TIME ZONE %(zone)s AS before
