-- Functions that the app and the commands call.

-- Returns the caller's organisation, or null. It runs as its owner; otherwise the policy of coordinators would recurse.
CREATE FUNCTION certjob_private.coordinator_organisation_id() RETURNS uuid
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT c.organisation_id FROM certjob.coordinators AS c WHERE c.id = (SELECT auth.uid()));
END
$$;

-- Returns the user id of the caller. PL/pgSQL resolves auth.uid() at the call, because only Supabase has that function.
CREATE FUNCTION certjob_private.user_id() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN auth.uid()::text;
END
$$;

-- The app's "try again now": queues the stored value again, or makes the open push due. A new push counts as tried, and
-- an open push keeps its attempts, because many requests must not delay the pushes of others. It returns one row. OUT
-- parameters would return the same, but Supabase's types would not name the columns.
CREATE FUNCTION certjob.request_portal_resync(mentor_id uuid) RETURNS TABLE (
    event_id bigint, event_version integer, visible boolean, in_flight boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    mentor record;
BEGIN
    SELECT m.id, m.portal_visible, m.dynamics_contact_id, o.name, o.portal, d.shown_until INTO mentor
    FROM certjob.mentors AS m
    JOIN certjob.organisations AS o ON o.id = m.organisation_id
    CROSS JOIN LATERAL certjob_private.days_on_portal(m) AS d
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
    IF mentor.dynamics_contact_id IS NULL THEN
        RAISE EXCEPTION 'this mentor has no contact ID, so the portal cannot be asked'
            USING HINT = 'enter the ID from Dynamics; certjob then asks the portal without a request';
    END IF;
    IF mentor.portal_visible IS NULL AND NOT EXISTS (
        SELECT FROM certjob.portal_sync_events AS e
        WHERE e.mentor_id = mentor.id AND e.status IN ('pending', 'blocked')
    ) THEN
        RAISE EXCEPTION 'this mentor waits for a review, so nobody knows yet whether to show or to hide them'
            USING HINT = 'the next `certjob run` decides and pushes; `certjob resync` does so at once';
    END IF;

    -- Someone doubts what the portal shows, so sure_until is not known.
    INSERT INTO certjob.portal_sync_events AS e (mentor_id, visible, shown_until, attempts)
    VALUES (mentor.id, coalesce(mentor.portal_visible, false), mentor.shown_until, 1)
    ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
    SET version = e.version + 1, status = 'pending', run_id = NULL, sure_until = DEFAULT,
        claim_token = CASE WHEN e.next_attempt_at > now() THEN e.claim_token END,
        next_attempt_at = CASE WHEN e.claim_token IS NULL THEN now() ELSE greatest(e.next_attempt_at, now()) END
    RETURNING e.id, e.version, e.visible, e.claim_token IS NOT NULL
    INTO event_id, event_version, visible, in_flight;
    RETURN NEXT;
END
$$;

-- Returns whether a person may say that a hide was made by hand: it is not confirmed, or this was said of it, and since then a
-- reading has listed the contact, or there was no reading for 31 days.
CREATE FUNCTION certjob_private.waits_for_a_person(e certjob.portal_sync_events) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NOT e.visible AND (e.status <> 'delivered' OR (e.hidden_by IS NOT NULL AND coalesce(
        certjob_private.is_listed(e.claim_contact_id, e.delivered_at), e.delivered_at < now() - interval '31 days')))
$$;

-- Settles the last hide of each mentor, because a person has hidden the contact by hand; returns their number. Only a reading
-- of the portal that begins later counts more.
CREATE FUNCTION certjob_private.settle_by_hand(mentor_ids uuid[], because text, who text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    number integer;
BEGIN
    IF coalesce(btrim(because), '') = '' OR length(because) > 1000 THEN
        RAISE EXCEPTION 'the reason must have 1 to 1,000 characters' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM FROM certjob.mentors AS m WHERE m.id = ANY (mentor_ids) ORDER BY m.id FOR NO KEY UPDATE;
    PERFORM FROM certjob.portal_sync_events AS e
    WHERE e.mentor_id = ANY (mentor_ids) AND (e.status <> 'delivered' OR e.claim_token IS NOT NULL)
    ORDER BY e.mentor_id, e.id FOR NO KEY UPDATE;
    IF EXISTS (
        SELECT FROM certjob.portal_sync_events AS e
        WHERE e.mentor_id = ANY (mentor_ids) AND e.claim_token IS NOT NULL AND e.next_attempt_at > now()
    ) THEN
        RAISE EXCEPTION 'a call to the portal may be under way' USING ERRCODE = 'object_in_use',
            HINT = 'try again in five minutes';
    END IF;
    UPDATE certjob.portal_sync_events AS e
    SET status = 'delivered', version = e.version + 1, delivered_at = now(), hidden_by = who,
        hidden_because = btrim(because), claim_token = NULL, claim_contact_id = last.contact_id,
        sure_until = '0001-01-01', shown_until = '0001-01-01',
        last_error = NULL, failure_code = NULL
    FROM (
        SELECT DISTINCT ON (l.mentor_id) l.id, coalesce(m.dynamics_contact_id, (
                SELECT c.claim_contact_id FROM certjob.portal_sync_events AS c
                WHERE c.mentor_id = l.mentor_id AND c.claim_contact_id IS NOT NULL ORDER BY c.id DESC LIMIT 1
            )) AS contact_id
        FROM certjob.portal_sync_events AS l
        JOIN certjob.mentors AS m ON m.id = l.mentor_id
        WHERE l.mentor_id = ANY (mentor_ids)
        ORDER BY l.mentor_id, l.id DESC
    ) AS last
    WHERE e.id = last.id AND certjob_private.waits_for_a_person(e);
    GET DIAGNOSTICS number = ROW_COUNT;
    IF number = 0 THEN
        RAISE EXCEPTION 'no hide is open' USING ERRCODE = 'no_data_found',
            HINT = CASE WHEN EXISTS (SELECT FROM certjob.still_due AS s
                WHERE s.mentor_id = ANY (mentor_ids) AND s.what = 'held')
                THEN 'a guard holds the mentor; permit it first with `certjob resync`'
                ELSE 'certjob must want the mentor hidden; see `certjob explain`' END;
    END IF;
    UPDATE certjob.dynamics_sync_failures AS f SET resolved_at = now()
    WHERE f.mentor_id = ANY (mentor_ids) AND f.resolved_at IS NULL;
    UPDATE certjob.mentors AS m SET portal_visible = false
    FROM certjob.organisations AS o
    WHERE m.id = ANY (mentor_ids) AND m.portal_visible IS NULL AND o.id = m.organisation_id AND o.portal IS NOT NULL;
    RETURN number;
END
$$;

-- The app's "I have hidden the contact by hand", for mentors of the coordinator's organisation.
CREATE FUNCTION certjob.confirm_hidden(mentor_id uuid, because text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM certjob.mentors AS m
        WHERE m.id = confirm_hidden.mentor_id
            AND m.organisation_id = (SELECT certjob_private.coordinator_organisation_id())
    ) THEN  -- the same error whether the mentor exists or not
        RAISE EXCEPTION 'only a coordinator of the mentor''s organisation may confirm this'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM certjob_private.settle_by_hand(ARRAY[confirm_hidden.mentor_id], confirm_hidden.because,
        certjob_private.user_id());
END
$$;

-- Deletes finished rows older than `before`, at most `row_limit` of each table, and returns the number of deleted rows.
-- It keeps locked rows, open rows, and rows that a later run reads. 90 days are longer than any lease or late reminder.
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
        -- The last delivery of each value stays for `explain`. A withdrawn hide is an alert until a later push.
        DELETE FROM certjob.portal_sync_events WHERE id = ANY (ARRAY(
            SELECT e.id FROM certjob.portal_sync_events AS e
            WHERE e.status IN ('delivered', 'withdrawn')
                AND greatest(e.wanted_at, e.next_attempt_at, e.delivered_at) < before
                AND (e.status = 'delivered' OR e.visible OR EXISTS (
                    SELECT FROM certjob.portal_sync_events AS l WHERE l.mentor_id = e.mentor_id AND l.id > e.id
                ))
                AND (e.delivered_at IS NULL OR EXISTS (
                    SELECT FROM certjob.portal_sync_events AS l
                    WHERE l.mentor_id = e.mentor_id AND l.visible = e.visible AND l.status = 'delivered'
                        AND (l.delivered_at, l.id) > (e.delivered_at, e.id)
                ))
                AND NOT EXISTS (
                    SELECT FROM certjob.dynamics_sync_failures AS f WHERE f.event_id = e.id AND f.resolved_at IS NULL
                )
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), transitions AS (
        -- The last change to the present status stays, because `explain` shows its date.
        DELETE FROM certjob.certificate_transitions WHERE id = ANY (ARRAY(
            SELECT t.id FROM certjob.certificate_transitions AS t
            LEFT JOIN certjob.certificates AS c
                ON c.id = t.certificate_id AND c.mentor_id = t.mentor_id AND c.status = t.to_status
            WHERE t.at < before AND t.as_of < before_on AND (c.id IS NULL OR EXISTS (
                SELECT FROM certjob.certificate_transitions AS l
                WHERE l.mentor_id = t.mentor_id AND l.certificate_id = t.certificate_id
                    AND l.to_status = t.to_status AND l.id > t.id
            ))
            LIMIT row_limit  -- not locked, because the worker may not update the audit
        )) RETURNING 1
    ), reminders AS (
        -- A row proves that the mail about its threshold and date was sent. It stays until that mail can no longer be
        -- due: past the date, or for a threshold t < 0 another -t days. Dates of earlier cycles count as well.
        DELETE FROM certjob.cert_notification_log WHERE id = ANY (ARRAY(
            SELECT l.id FROM certjob.cert_notification_log AS l
            WHERE l.status IN ('sent', 'cancelled', 'superseded')
                AND greatest(l.queued_at, l.sent_at, l.next_attempt_at) < before
                AND before_on - greatest(-l.threshold_days, 0) > greatest(l.expires_on, (
                    SELECT max((cycle ->> 'expires_on')::date) FROM jsonb_array_elements(l.history) AS cycle
                ))
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), digests AS (
        -- The last sent digest of each coordinator stays, by day and number, because the next one continues from it.
        DELETE FROM certjob.coordinator_digests WHERE id = ANY (ARRAY(
            SELECT d.id FROM certjob.coordinator_digests AS d
            WHERE d.status IN ('sent', 'cancelled', 'superseded')
                AND greatest(d.queued_at, d.sent_at, d.next_attempt_at) < before AND d.digest_on < before_on
                AND (d.status <> 'sent' OR EXISTS (
                    SELECT FROM certjob.coordinator_digests AS l
                    WHERE l.coordinator_id = d.coordinator_id AND l.status = 'sent' AND l.digest_on > d.digest_on
                        AND coalesce(l.sent_number, 0) >= coalesce(d.sent_number, 0)
                ))
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), runs AS (
        -- The last run of each command, organisation and outcome stays, and a future day as a record of a wrong clock.
        DELETE FROM certjob.job_runs WHERE id = ANY (ARRAY(
            SELECT r.id FROM certjob.job_runs AS r
            WHERE greatest(r.started_at, r.last_seen_at, r.finished_at) < before AND r.as_of < before_on
                AND r.id NOT IN (
                    SELECT DISTINCT ON (k.command, k.organisation, k.outcome) k.id FROM certjob.job_runs AS k
                    ORDER BY k.command, k.organisation, k.outcome, coalesce(k.finished_at, k.started_at) DESC
                )
            LIMIT row_limit FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), acknowledgements AS (
        DELETE FROM certjob.acknowledgements AS k WHERE k.until < before_on RETURNING 1
    ), loads AS (
        DELETE FROM certjob.loaded_rows WHERE loaded_at < now() - interval '90 days' RETURNING 1
    )
    SELECT count(*) INTO deleted FROM (
        TABLE failures UNION ALL TABLE events UNION ALL TABLE transitions UNION ALL TABLE reminders
        UNION ALL TABLE digests UNION ALL TABLE runs UNION ALL TABLE acknowledgements UNION ALL TABLE loads
    ) AS rows;
    RETURN deleted;
END
$$;
