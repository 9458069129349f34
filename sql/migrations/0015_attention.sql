-- Nothing goes unnoticed: what the guards hold and whom a run could not review are stored, and one view says what needs
-- attention. Everything that asks (alerts, status, metrics, the digest, a run at its end) asks this view.

-- No foreign keys, here and in review_problems: whoever locks an organisation or a mentor must not keep certjob from writing
-- down that they were held. The next run deletes what belongs to nobody any more.
CREATE TABLE held_reviews (
    organisation_id   uuid        NOT NULL,
    what              text        NOT NULL CHECK (what IN ('pauses', 'returns', 'reminders', 'portal')),
    since             timestamptz NOT NULL DEFAULT now(),
    as_of             date        NOT NULL,
    reason            text        NOT NULL,
    mentors           integer     NOT NULL,
    ended_by_calendar integer     NOT NULL DEFAULT 0,
    facts_changed     integer     NOT NULL DEFAULT 0,
    may_be_shown      integer     NOT NULL DEFAULT 0,
    mentor_ids        uuid[]      NOT NULL DEFAULT '{}',
    run_id            uuid,
    PRIMARY KEY (organisation_id, what)
);
ALTER TABLE held_reviews ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE held_reviews IS
    'what the guards hold back for an organisation, counted when it was held; gone once a run no longer holds it';
COMMENT ON COLUMN held_reviews.as_of IS 'the day of the run that held it last';
COMMENT ON COLUMN held_reviews.mentors IS 'how many mentors would change';
COMMENT ON COLUMN held_reviews.ended_by_calendar IS
    'of them, whose day had come although no fact was changed: their certificates have really ended';
COMMENT ON COLUMN held_reviews.facts_changed IS 'of them, whose facts were changed since the last review: the import';
COMMENT ON COLUMN held_reviews.may_be_shown IS 'of them, who should be hidden, and whom the portal may still show';
COMMENT ON COLUMN held_reviews.mentor_ids IS 'at most 50 of them, those who may be shown first';

CREATE TABLE review_problems (
    mentor_id uuid        NOT NULL PRIMARY KEY,
    reason    text        NOT NULL,
    since     timestamptz NOT NULL DEFAULT now(),
    as_of     date        NOT NULL,
    run_id    uuid
);
ALTER TABLE review_problems ENABLE ROW LEVEL SECURITY;
COMMENT ON TABLE review_problems IS
    'mentors whom a run found broken or had to skip; gone once a run or a resync has reviewed them';
COMMENT ON COLUMN review_problems.as_of IS 'the day of the run that found it last';

-- One row for each thing that needs attention. kind says what it is; alert_id is the same as long as it is the same thing;
-- row_id is its row in the table of the kind; since is when it became an alert; until is the last day on which it matters
-- (null: as long as it is there). What was held or not reviewed counts only while a mentor is due as of its day: two runs
-- that cross leave no ghost. The planner knows nothing about such small tables: each row looks a mentor up by an index
-- (LIMIT 1, OFFSET 0).
--
-- A new kind is one more branch here (in a new migration) and one more member of Kind in certjob/review/attention.py.
CREATE VIEW attention WITH (security_invoker = true) AS
SELECT 'held' AS kind, h.organisation_id, NULL::uuid AS mentor_id, NULL::bigint AS row_id, 'held:' || h.what AS alert_id,
    h.since, NULL::date AS until
FROM held_reviews AS h
LEFT JOIN LATERAL (
    SELECT m.id FROM mentors AS m
    WHERE m.organisation_id = h.organisation_id AND m.review_on <= h.as_of
    ORDER BY m.review_on, m.id
    LIMIT 1
) AS due ON true
WHERE h.what = 'portal' OR due.id IS NOT NULL
UNION ALL
SELECT 'never_reviewed', m.organisation_id, p.mentor_id, NULL, 'problem:' || p.mentor_id, p.since, NULL
FROM review_problems AS p
CROSS JOIN LATERAL (
    SELECT o.organisation_id FROM mentors AS o WHERE o.id = p.mentor_id AND o.review_on <= p.as_of OFFSET 0
) AS m
UNION ALL
SELECT 'may_be_visible', a.organisation_id, a.mentor_id, a.event_id, 'push:' || a.event_id || ':false',
    least(a.wanted_at + interval '1 hour', (
        SELECT f.created_at FROM dynamics_sync_failures AS f WHERE f.mentor_id = a.mentor_id AND f.resolved_at IS NULL
    )), NULL
FROM portal_alerts AS a
WHERE NOT a.visible
UNION ALL
SELECT 'may_be_hidden', a.organisation_id, a.mentor_id, a.event_id, 'push:' || a.event_id || ':true',
    least(a.wanted_at + interval '1 hour', (
        SELECT f.created_at FROM dynamics_sync_failures AS f WHERE f.mentor_id = a.mentor_id AND f.resolved_at IS NULL
    )), NULL
FROM portal_alerts AS a
WHERE a.visible
UNION ALL
-- Its day is that of the threshold, or when it was queued late, as after an import, the day it was queued.
SELECT 'failed_reminders', m.organisation_id, l.mentor_id, l.id, 'reminder:' || l.id || ':' || l.queued_at::text,
    l.next_attempt_at, greatest(l.expires_on - l.threshold_days, l.queued_at::date) + 14
FROM cert_notification_log AS l
CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = l.mentor_id OFFSET 0) AS m
WHERE l.status = 'failed'
UNION ALL
-- What the recipient's server defers, as when a mailbox is full, is tried again until it is too late for it.
SELECT CASE WHEN l.failure_code = 'deferred' THEN 'failed_reminders' ELSE 'waiting_reminders' END, m.organisation_id,
    l.mentor_id, l.id, 'reminder:' || l.id || ':' || l.queued_at::text, l.queued_at + interval '1 day', NULL
FROM cert_notification_log AS l
CROSS JOIN LATERAL (SELECT o.organisation_id FROM mentors AS o WHERE o.id = l.mentor_id OFFSET 0) AS m
WHERE l.status = 'pending' AND l.queued_at < now() - interval '1 day'
UNION ALL
SELECT CASE d.status WHEN 'failed' THEN 'failed_digests' ELSE 'waiting_digests' END, c.organisation_id, NULL, d.id,
    'digest:' || d.id || ':' || d.digest_on, CASE d.status WHEN 'failed' THEN d.next_attempt_at ELSE d.queued_at + interval '1 day' END,
    NULL
FROM coordinator_digests AS d
JOIN coordinators AS c ON c.id = d.coordinator_id
WHERE d.status = 'failed' OR (d.status = 'pending' AND d.queued_at < now() - interval '1 day');

-- As in 0005. A corrected address queues the reminder anew: it has not waited for it.
CREATE OR REPLACE FUNCTION certjob_private.mentor_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
BEGIN
    NEW.review_on := '-infinity';
    IF OLD.dynamics_contact_id IS DISTINCT FROM NEW.dynamics_contact_id THEN
        NEW.portal_visible := NULL;  -- nobody knows what the portal shows for the other contact
        IF NEW.dynamics_contact_id IS NOT NULL THEN
            UPDATE public.portal_sync_events
            SET version = version + 1,
                status = 'pending',
                attempts = 0,
                claim_token = CASE WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN claim_token END,
                next_attempt_at = CASE
                    WHEN claim_token IS NOT NULL AND next_attempt_at > now() THEN next_attempt_at ELSE now()
                END
            WHERE mentor_id = NEW.id AND status IN ('pending', 'blocked');
        END IF;
    END IF;
    IF OLD.email IS DISTINCT FROM NEW.email THEN
        UPDATE public.cert_notification_log
        SET status = 'pending', attempts = 0, next_attempt_at = now(), queued_at = now(), claim_token = NULL
        WHERE mentor_id = NEW.id AND status = 'failed';
    END IF;
    RETURN NEW;
END
$$;

-- Who may do what with the new tables. Coordinators see what concerns their own organisation; the view is certjob's alone,
-- since it also reads what is queued for coordinators' mailboxes.
CREATE FUNCTION certjob_private.set_up_attention() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    grantee text;
BEGIN
    FOR grantee IN
        SELECT 'PUBLIC' UNION ALL
        SELECT quote_ident(rolname) FROM pg_catalog.pg_roles WHERE rolname IN ('anon', 'authenticated')
    LOOP
        EXECUTE format('REVOKE ALL ON public.held_reviews, public.review_problems, public.attention FROM %s', grantee);
    END LOOP;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'certjob_worker') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON public.held_reviews, public.review_problems TO certjob_worker;
        GRANT SELECT ON public.attention TO certjob_worker;
        PERFORM certjob_private.ensure_policy('worker works here', each_table,
                'TO certjob_worker USING (true) WITH CHECK (true)')
            FROM unnest(ARRAY['held_reviews', 'review_problems']) AS each_table;
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'authenticated')
        AND EXISTS (
            SELECT FROM pg_catalog.pg_proc AS p
            JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
            WHERE n.nspname = 'auth' AND p.proname = 'uid' AND p.pronargs = 0
        )
    THEN
        GRANT SELECT ON public.held_reviews, public.review_problems TO authenticated;
        PERFORM certjob_private.ensure_policy('coordinators read their own', 'held_reviews',
            'FOR SELECT TO authenticated USING (organisation_id = (SELECT certjob_private.coordinator_organisation_id()))');
        PERFORM certjob_private.ensure_policy('coordinators read their own', 'review_problems', $p$
            FOR SELECT TO authenticated USING (EXISTS (
                SELECT FROM public.mentors AS m
                WHERE m.id = mentor_id AND m.organisation_id = (SELECT certjob_private.coordinator_organisation_id())
            ))$p$);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION certjob_private.set_up_roles() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    left_to_do CONSTANT text := certjob_private.set_up_worker();
BEGIN
    PERFORM certjob_private.set_up_app();
    PERFORM certjob_private.set_up_portal_reading();
    PERFORM certjob_private.set_up_attention();
    IF left_to_do IS NOT NULL THEN
        RAISE WARNING '%', left_to_do;
    END IF;
    -- certjob's statements name no schema, and a function unnest(uuid[]) in public would fit better than PostgreSQL's.
    IF has_schema_privilege('public', 'public', 'CREATE') THEN
        RAISE WARNING 'everybody may create functions in the schema public, which the commands would then run; as its '
            'owner: REVOKE CREATE ON SCHEMA public FROM PUBLIC';
    END IF;
END
$$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA certjob_private FROM PUBLIC;
SELECT certjob_private.set_up_attention();
