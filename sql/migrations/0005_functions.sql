-- The functions that the app and the commands call.

-- Returns the organisation of the coordinator who asks, or null. It runs as its owner, because a policy on coordinators
-- that reads coordinators would call itself. Only policies call it: nobody else may use its schema.
CREATE FUNCTION certjob_private.coordinator_organisation_id() RETURNS uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT c.organisation_id FROM certjob.coordinators AS c WHERE c.id = (SELECT auth.uid()));
END
$$;

-- Returns the id of the app's user who asks. auth.uid() is looked up when it is called: PostgreSQL outside Supabase has
-- no such function.
CREATE FUNCTION certjob_private.user_id() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN auth.uid()::text;
END
$$;

-- The app's "try again now": it queues the stored value again, or makes the open push due. The next `certjob deliver`
-- reviews the mentor first if a fact has changed, then makes the call. A requested push counts as tried, and an open one
-- keeps its attempts: however many are requested, they do not go before the pushes of others.
CREATE FUNCTION certjob.request_portal_resync(
    mentor_id uuid, OUT event_id bigint, OUT event_version integer, OUT visible boolean, OUT in_flight boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    mentor record;
BEGIN
    SELECT m.id, m.portal_visible, o.name, o.portal
    INTO mentor
    FROM certjob.mentors AS m
    JOIN certjob.organisations AS o ON o.id = m.organisation_id
    WHERE m.id = request_portal_resync.mentor_id
        AND m.organisation_id = (SELECT certjob_private.coordinator_organisation_id())
    FOR NO KEY UPDATE OF m;  -- before the event, as certjob does
    IF NOT FOUND THEN  -- the same error whether the mentor exists or not
        RAISE EXCEPTION 'only a coordinator of the mentor''s organisation may ask for a resync'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF mentor.portal IS NULL THEN
        RAISE EXCEPTION '% has no portal, so there is nothing to push for this mentor', mentor.name;
    END IF;
    IF mentor.portal_visible IS NULL AND NOT EXISTS (
        SELECT FROM certjob.portal_sync_events AS e
        WHERE e.mentor_id = mentor.id AND e.status IN ('pending', 'blocked')
    ) THEN
        RAISE EXCEPTION 'this mentor waits for a review, so nobody knows yet whether to show or to hide them'
            USING HINT = 'the next `certjob run` decides and pushes; `certjob resync` does so at once';
    END IF;

    INSERT INTO certjob.portal_sync_events AS e (mentor_id, visible, attempts)
    VALUES (mentor.id, coalesce(mentor.portal_visible, false), 1)
    ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
    SET version = e.version + 1,
        status = 'pending',
        run_id = NULL,
        claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END,
        next_attempt_at = CASE
            WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.next_attempt_at ELSE now()
        END
    RETURNING e.id, e.version, e.visible, e.claim_token IS NOT NULL
    INTO event_id, event_version, visible, in_flight;
END
$$;

-- Deletes finished rows older than `before`, at most `row_limit` of each table, and returns the number of deleted rows.
-- Locked rows stay. It deletes nothing that is open, and nothing that a later run still reads. 90 days are longer than
-- any lease, and longer than a reminder can be late.
CREATE FUNCTION certjob.prune(before timestamptz, row_limit integer) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before_on CONSTANT date := (before AT TIME ZONE 'UTC')::date;
    deleted integer;
BEGIN
    IF before > now() - interval '90 days' THEN
        RAISE EXCEPTION 'rows younger than 90 days may still be needed' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH failures AS (
        DELETE FROM certjob.dynamics_sync_failures WHERE id = ANY (ARRAY(
            SELECT f.id FROM certjob.dynamics_sync_failures AS f
            WHERE f.resolved_at < before AND f.last_failed_at < before
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), events AS (
        -- The last confirmation of either value stays: `explain` shows it, and `reconcile` shows only mentors whom
        -- certjob has shown before.
        DELETE FROM certjob.portal_sync_events WHERE id = ANY (ARRAY(
            SELECT e.id FROM certjob.portal_sync_events AS e
            WHERE e.status IN ('delivered', 'withdrawn')
                -- A withdrawn hide is an alert until a later push.
                AND (e.status = 'delivered' OR e.visible OR EXISTS (
                    SELECT FROM certjob.portal_sync_events AS later
                    WHERE later.mentor_id = e.mentor_id AND later.id > e.id
                ))
                AND greatest(e.wanted_at, e.next_attempt_at, e.delivered_at) < before
                AND NOT EXISTS (
                    SELECT FROM certjob.dynamics_sync_failures AS f WHERE f.event_id = e.id AND f.resolved_at IS NULL
                )
                AND (e.delivered_at IS NULL OR EXISTS (
                    SELECT FROM certjob.portal_sync_events AS newer
                    WHERE newer.mentor_id = e.mentor_id AND newer.visible = e.visible AND newer.status = 'delivered'
                        AND (newer.delivered_at, newer.id) > (e.delivered_at, e.id)
                ))
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), transitions AS (
        -- The last change into the present status of a certificate stays: `explain` shows since when it has been so.
        DELETE FROM certjob.certificate_transitions WHERE id = ANY (ARRAY(
            SELECT t.id FROM certjob.certificate_transitions AS t
            WHERE t.at < before AND t.as_of < before_on
                AND NOT EXISTS (
                    SELECT FROM certjob.certificates AS c
                    WHERE c.id = t.certificate_id AND c.mentor_id = t.mentor_id AND c.status = t.to_status
                        AND NOT EXISTS (
                            SELECT FROM certjob.certificate_transitions AS newer
                            WHERE newer.mentor_id = t.mentor_id AND newer.certificate_id = t.certificate_id
                                AND newer.to_status = t.to_status AND newer.id > t.id
                        )
                )
            LIMIT row_limit  -- not locked: the worker may not update the audit
        )) RETURNING 1
    ), reminders AS (
        -- The row is the memory that a mail about this threshold and date was sent. It must outlive every day on which
        -- that mail could be due: the date itself, or for a threshold t < 0 the day -t days later. The same holds for
        -- the dates of earlier cycles.
        DELETE FROM certjob.cert_notification_log WHERE id = ANY (ARRAY(
            SELECT l.id FROM certjob.cert_notification_log AS l
            WHERE l.status IN ('sent', 'cancelled', 'superseded')
                AND greatest(l.queued_at, l.sent_at, l.next_attempt_at) < before
                AND l.expires_on < before_on - greatest(-l.threshold_days, 0)
                AND NOT EXISTS (
                    SELECT FROM jsonb_array_elements(l.history) AS cycle
                    WHERE (cycle ->> 'expires_on')::date >= before_on - greatest(-l.threshold_days, 0)
                )
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), digests AS (
        -- The last sent digest of each coordinator stays, by day and number: the next digest begins there.
        DELETE FROM certjob.coordinator_digests WHERE id = ANY (ARRAY(
            SELECT d.id FROM certjob.coordinator_digests AS d
            WHERE d.status IN ('sent', 'cancelled', 'superseded')
                AND greatest(d.queued_at, d.sent_at, d.next_attempt_at) < before
                AND d.digest_on < before_on
                AND (d.status <> 'sent' OR EXISTS (
                    SELECT FROM certjob.coordinator_digests AS newer
                    WHERE newer.coordinator_id = d.coordinator_id AND newer.status = 'sent'
                        AND newer.digest_on > d.digest_on
                        AND coalesce(newer.sent_number, 0) >= coalesce(d.sent_number, 0)
                ))
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), runs AS (
        -- The last run of each command and organisation stays, and the last one of each outcome. A row for a future day
        -- is the memory of a wrong clock.
        DELETE FROM certjob.job_runs WHERE id = ANY (ARRAY(
            SELECT r.id FROM certjob.job_runs AS r
            WHERE greatest(r.started_at, r.last_seen_at, r.finished_at) < before AND r.as_of < before_on
                AND r.id NOT IN (
                    SELECT DISTINCT ON (k.command, k.organisation) k.id FROM certjob.job_runs AS k
                    ORDER BY k.command, k.organisation, k.started_at DESC
                )
                AND r.id NOT IN (
                    SELECT DISTINCT ON (k.command, k.organisation, k.outcome) k.id FROM certjob.job_runs AS k
                    WHERE k.finished_at IS NOT NULL
                    ORDER BY k.command, k.organisation, k.outcome, k.finished_at DESC
                )
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), acknowledgements AS (
        DELETE FROM certjob.acknowledgements AS k WHERE k.until < before_on OR k.ended_at < before RETURNING 1
    )
    SELECT count(*) INTO deleted FROM (
        TABLE failures UNION ALL TABLE events UNION ALL TABLE transitions UNION ALL TABLE reminders
        UNION ALL TABLE digests UNION ALL TABLE runs UNION ALL TABLE acknowledgements
    ) AS rows;
    RETURN deleted;
END
$$;
