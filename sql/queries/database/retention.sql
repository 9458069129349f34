-- name: count_old_digests
-- What delete_old_digests would delete.
SELECT count(*)
FROM coordinator_digests AS d
WHERE d.status IN ('sent', 'cancelled', 'superseded')
    AND greatest(d.queued_at, d.sent_at, d.next_attempt_at, d.covers_until) < %(before)s
    AND d.digest_on < %(before_on)s
    AND NOT (
        d.status = 'sent'
        AND NOT EXISTS (
            SELECT
            FROM coordinator_digests AS newer
            WHERE newer.coordinator_id = d.coordinator_id
                AND newer.status = 'sent'
                AND newer.digest_on > d.digest_on
                AND newer.covers_until >= coalesce(d.covers_until, '-infinity')
                AND coalesce(newer.sent_number, 0) >= coalesce(d.sent_number, 0)
        )
    )

-- name: delete_old_digests
-- Digests that are done, one page by key. Of each coordinator the last sent one stays, by every measure (its day, its
-- number, until when it told): the next one begins where it ended.
WITH page AS MATERIALIZED (
    SELECT id FROM coordinator_digests WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM coordinator_digests AS d
    USING page
    WHERE d.id = page.id
        AND d.status IN ('sent', 'cancelled', 'superseded')
        AND greatest(d.queued_at, d.sent_at, d.next_attempt_at, d.covers_until) < %(before)s
        AND d.digest_on < %(before_on)s
        AND NOT (
            d.status = 'sent'
            AND NOT EXISTS (
                SELECT
                FROM coordinator_digests AS newer
                WHERE newer.coordinator_id = d.coordinator_id
                    AND newer.status = 'sent'
                    AND newer.digest_on > d.digest_on
                    AND newer.covers_until >= coalesce(d.covers_until, '-infinity')
                    AND coalesce(newer.sent_number, 0) >= coalesce(d.sent_number, 0)
            )
        )
    RETURNING d.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted

-- name: count_old_job_runs
-- What delete_old_job_runs would delete.
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

-- name: delete_old_job_runs
-- The ledger of runs, one page by key, but for what find_kept_job_runs has found. A row about a day that is still to come is
-- the memory of a wrong clock, and stays until then. A run that has neither ended nor been seen for so long has died.
WITH page AS MATERIALIZED (
    SELECT id FROM job_runs WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM job_runs AS r
    USING page
    WHERE r.id = page.id
        AND greatest(r.started_at, r.last_seen_at, r.finished_at) < %(before)s
        AND r.as_of < %(before_on)s
        AND r.id <> ALL (%(kept)s)
    RETURNING r.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted

-- name: count_old_portal_events
-- What delete_old_portal_events would delete.
SELECT count(*)
FROM portal_sync_events AS e
WHERE e.status IN ('delivered', 'withdrawn')
    AND greatest(e.wanted_at, e.next_attempt_at, e.delivered_at) < %(before)s
    AND NOT EXISTS (
        SELECT FROM dynamics_sync_failures AS f WHERE f.event_id = e.id AND f.resolved_at IS NULL
    )
    AND NOT (
        e.delivered_at IS NOT NULL
        AND NOT EXISTS (
            SELECT
            FROM portal_sync_events AS newer
            WHERE newer.mentor_id = e.mentor_id
                AND newer.visible = e.visible
                AND newer.status = 'delivered'
                AND (newer.delivered_at, newer.id) > (e.delivered_at, e.id)
        )
    )

-- name: delete_old_portal_events
-- Events that are done, one page by key. Never an open one, nor one whose call may still be in flight, nor one that an
-- unresolved failure is about. Of each mentor the last confirmation of either value stays: it is what the portal is known to
-- show, and `deliver --all` shows only whom it has shown before.
WITH page AS MATERIALIZED (
    SELECT id FROM portal_sync_events WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM portal_sync_events AS e
    USING page
    WHERE e.id = page.id
        AND e.status IN ('delivered', 'withdrawn')
        AND greatest(e.wanted_at, e.next_attempt_at, e.delivered_at) < %(before)s
        AND NOT EXISTS (
            SELECT FROM dynamics_sync_failures AS f WHERE f.event_id = e.id AND f.resolved_at IS NULL
        )
        AND NOT (
            e.delivered_at IS NOT NULL
            AND NOT EXISTS (
                SELECT
                FROM portal_sync_events AS newer
                WHERE newer.mentor_id = e.mentor_id
                    AND newer.visible = e.visible
                    AND newer.status = 'delivered'
                    AND (newer.delivered_at, newer.id) > (e.delivered_at, e.id)
            )
        )
    RETURNING e.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted

-- name: count_old_reminders
-- What delete_old_reminders would delete.
SELECT count(*)
FROM cert_notification_log AS l
WHERE l.status IN ('sent', 'cancelled', 'superseded')
    AND greatest(l.queued_at, l.sent_at, l.next_attempt_at) < %(before)s
    AND l.expires_on < %(before_on)s::date - greatest(-l.threshold_days, 0)
    AND NOT EXISTS (
        SELECT
        FROM jsonb_array_elements(l.history) AS cycle
        WHERE (cycle ->> 'expires_on')::date >= %(before_on)s::date - greatest(-l.threshold_days, 0)
    )

-- name: delete_old_reminders
-- Reminders that nothing can ever ask about again, one page by key. A row is the memory that a mail about this threshold and
-- a date went out, and it must outlive every day on which that mail could be due: for a threshold t >= 0 the last one is
-- the date itself, for t < 0 it is -t + 14 days later. So a row goes only when every date that it knows, those of earlier
-- cycles too, lies more than -t days before the limit, and the limit is at least 90 days ago. Whatever date the
-- certificate has or is given later is then either one of those, and too late to be mailed about, or one that the row
-- knows nothing of, which is mailed about with the row or without it. Neither pending nor failed rows go.
WITH page AS MATERIALIZED (
    SELECT id FROM cert_notification_log WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM cert_notification_log AS l
    USING page
    WHERE l.id = page.id
        AND l.status IN ('sent', 'cancelled', 'superseded')
        AND greatest(l.queued_at, l.sent_at, l.next_attempt_at) < %(before)s
        AND l.expires_on < %(before_on)s::date - greatest(-l.threshold_days, 0)
        AND NOT EXISTS (
            SELECT
            FROM jsonb_array_elements(l.history) AS cycle
            WHERE (cycle ->> 'expires_on')::date >= %(before_on)s::date - greatest(-l.threshold_days, 0)
        )
    RETURNING l.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted

-- name: count_old_sync_failures
-- What delete_old_sync_failures would delete.
SELECT count(*)
FROM dynamics_sync_failures AS f
WHERE greatest(f.resolved_at, f.last_failed_at) < %(before)s AND f.resolved_at IS NOT NULL

-- name: delete_old_sync_failures
-- Failures that were resolved long ago, one page by key; never an unresolved one. That certjob resolves by UPDATE is for
-- dashboards, which see what is new; a row as old as this is on none, and its DELETE tells Realtime no more than a number.
WITH page AS MATERIALIZED (
    SELECT id FROM dynamics_sync_failures WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM dynamics_sync_failures AS f
    USING page
    WHERE f.id = page.id AND greatest(f.resolved_at, f.last_failed_at) < %(before)s AND f.resolved_at IS NOT NULL
    RETURNING f.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted

-- name: count_old_transitions
-- What delete_old_transitions would delete.
SELECT count(*)
FROM certificate_transitions AS t
WHERE t.at < %(before)s
    AND t.as_of < %(before_on)s
    AND NOT EXISTS (
        SELECT
        FROM certificates AS c
        WHERE c.id = t.certificate_id
            AND c.mentor_id = t.mentor_id
            AND c.status = t.to_status
            AND NOT EXISTS (
                SELECT
                FROM certificate_transitions AS newer
                WHERE newer.mentor_id = t.mentor_id
                    AND newer.certificate_id = t.certificate_id
                    AND newer.to_status = t.to_status
                    AND newer.id > t.id
            )
    )

-- name: delete_old_transitions
-- The audit, one page by key. While a certificate exists, the last time it came into its present status stays: `explain`
-- tells since when it is what it is.
WITH page AS MATERIALIZED (
    SELECT id FROM certificate_transitions WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
), gone AS (
    DELETE FROM certificate_transitions AS t
    USING page
    WHERE t.id = page.id
        AND t.at < %(before)s
        AND t.as_of < %(before_on)s
        AND NOT EXISTS (
            SELECT
            FROM certificates AS c
            WHERE c.id = t.certificate_id
                AND c.mentor_id = t.mentor_id
                AND c.status = t.to_status
                AND NOT EXISTS (
                    SELECT
                    FROM certificate_transitions AS newer
                    WHERE newer.mentor_id = t.mentor_id
                        AND newer.certificate_id = t.certificate_id
                        AND newer.to_status = t.to_status
                        AND newer.id > t.id
                )
        )
    RETURNING t.id
)
SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1) AS last, (SELECT count(*) FROM gone) AS deleted
