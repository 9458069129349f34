-- Alerts. The commands, the digest and the dashboard read them here, and therefore agree.

-- Returns whether the contact of the mentor's last call belongs to another mentor now, even of another organisation, whose
-- portal certjob keeps.
CREATE FUNCTION certjob_private.contact_is_taken(of_mentor uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$ SELECT EXISTS (
    SELECT FROM certjob.mentors AS m
    JOIN certjob.organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
    WHERE m.dynamics_contact_id = (
        SELECT e.claim_contact_id FROM certjob.portal_sync_events AS e
        WHERE e.mentor_id = of_mentor AND e.claim_contact_id IS NOT NULL ORDER BY e.id DESC LIMIT 1
    )
) $$;

-- Returns whether the last reading of the portal lists a contact; null if no reading has begun since then, or if it does not
-- but may be incomplete.
CREATE FUNCTION certjob_private.is_listed(contact uuid, since timestamptz) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN contact = ANY (r.visible) THEN true WHEN contact IS NOT NULL AND NOT r.is_doubtful THEN false END
    FROM certjob.portal_last_reading AS r
    WHERE r.read_at > since AND r.read_at <= now()
$$;

-- Returns whether the mentor must not be visible, as far as this is known without the rules: the last review has decided it,
-- its last day has passed, or a guard holds the removal. Facts that no review has seen need the rules.
CREATE FUNCTION certjob_private.must_be_hidden(m certjob.mentors, today date) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT m.left_at IS NOT NULL OR m.certified_until < today
        OR EXISTS (SELECT FROM certjob.mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL)
        OR EXISTS (
            SELECT FROM certjob.still_due AS s
            WHERE s.mentor_id = m.id AND s.what = 'held' AND s.reason IN ('revoked', 'left', 'ended')
        )
$$;

-- Open pushes.
--   cause     the first that applies; docs/samples/codes.md lists the causes
--   since     when the push became an alert, or will become one; not before the push was requested
--   is_alert  true if the push failed or is an hour old, or if its time is in the future because a wrong clock wrote
--             it. Exceptions: a show of a mentor who waits for a review, because the review comes first, and a hide
--             without a contact ID if the contact of the last call belongs to another mentor now. A push of a mentor
--             whom the portal shows in any case becomes an alert seven days before the end of that, or if the portal
--             rejects it.
CREATE VIEW certjob.open_pushes WITH (security_invoker = true) AS
SELECT e.id AS event_id, e.mentor_id, m.organisation_id, e.visible, e.is_urgent, e.sure_until, e.shown_until, e.status,
    e.attempts AS rounds, e.wanted_at,
    greatest(e.wanted_at, least(e.wanted_at + interval '1 hour', f.created_at), must_end.at) AS since,
    (f.id IS NOT NULL OR e.wanted_at < now() - interval '1 hour' OR e.wanted_at > now() + interval '1 hour')
        AND (e.is_urgent OR m.review_on > current_date)
        AND (must_end.at IS NULL OR must_end.at <= now())
        AND NOT (NOT e.visible AND m.dynamics_contact_id IS NULL
            AND certjob_private.contact_is_taken(e.mentor_id)) AS is_alert,
    claim.is_live AS is_claimed,
    CASE
        WHEN still.is_certified AND lasting.cause NOT IN ('no_contact_id', 'contact_not_found') THEN 'later_day_on_portal'
        WHEN claim.is_live THEN 'queued'
        WHEN NOT e.visible AND o.portal IS NULL OR m.dynamics_contact_id IS NULL THEN lasting.cause
        -- The contact ID has changed. The next review sets portal_visible.
        WHEN m.portal_visible IS NULL AND e.attempts = 0 THEN 'queued'
        -- It was reopened after a failure.
        WHEN f.kind IN ('transient', 'permanent') AND e.status = 'pending' AND e.attempts = 0 THEN 'queued'
        ELSE lasting.cause
    END AS cause,
    lasting.cause AS failure,
    coalesce(f.error, e.last_error) AS error,
    coalesce(f.attempts, 0) AS calls,
    f.created_at AS failing_since, f.last_failed_at, e.next_attempt_at
FROM certjob.portal_sync_events AS e
JOIN certjob.mentors AS m ON m.id = e.mentor_id
JOIN certjob.organisations AS o ON o.id = m.organisation_id
LEFT JOIN certjob.dynamics_sync_failures AS f ON f.mentor_id = e.mentor_id AND f.resolved_at IS NULL
CROSS JOIN LATERAL (SELECT e.claim_token IS NOT NULL AND e.next_attempt_at > now() AS is_live) AS claim
CROSS JOIN LATERAL (
    SELECT CASE WHEN NOT e.is_urgent AND e.sure_until > '0001-01-01' AND f.kind IS DISTINCT FROM 'permanent'
        THEN e.sure_until - interval '7 days' END AS at
) AS must_end
-- The portal has a later day, but until the last certified day has passed, the mentor may be visible.
CROSS JOIN LATERAL (SELECT e.visible AND e.is_urgent AND m.certified_until >= current_date AS is_certified) AS still
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN NOT e.visible AND o.portal IS NULL THEN 'hide_by_hand'
        WHEN m.dynamics_contact_id IS NULL THEN 'no_contact_id'
        WHEN f.id IS NOT NULL THEN coalesce(f.failure_code, 'change_refused')
        WHEN e.last_error IS NULL AND e.status = 'pending' THEN 'portal_stopped'  -- no delivery has tried it
        ELSE coalesce(e.failure_code, 'change_refused')
    END AS cause
) AS lasting  -- the cause without the attempts that are under way
WHERE e.status IN ('pending', 'blocked');

-- The held mentors, and those with held reminders. In each organisation, `place` counts them from the most harmful change.
-- A row of still_due counts only while the mentor is due, because two overlapping runs can leave an old one.
--   old_last_day, new_last_day  the last certified day, and what a review would store; null: not certified
CREATE VIEW certjob_private.held_names WITH (security_invoker = true) AS
SELECT m.organisation_id, h.mentor_id, m.member_no, coalesce(m.full_name, m.member_no) AS full_name, h.reason, h.since,
    row_number() OVER (
        PARTITION BY m.organisation_id
        ORDER BY array_position('{revoked,left,ended,ends_soon,ends_earlier,new_contact,returns}', h.reason), m.member_no
    ) AS place, nullif(m.certified_until, '0001-01-01') AS old_last_day,
    nullif(coalesce(h.certified_until, m.certified_until), '0001-01-01') AS new_last_day
FROM (
    SELECT s.mentor_id, s.reason, s.since, s.as_of, s.certified_until FROM certjob.still_due AS s WHERE s.what = 'held'
    UNION ALL
    SELECT l.mentor_id, 'reminder', min(l.queued_at), 'infinity', NULL
    FROM certjob.cert_notification_log AS l
    WHERE l.status = 'held'
        AND NOT EXISTS (SELECT FROM certjob.still_due AS s WHERE s.mentor_id = l.mentor_id AND s.what = 'held')
    GROUP BY l.mentor_id
) AS h
CROSS JOIN LATERAL (
    SELECT o.organisation_id, o.member_no, o.full_name, o.certified_until FROM certjob.mentors AS o
    WHERE o.id = h.mentor_id AND (h.as_of = 'infinity' OR o.review_on <= h.as_of) OFFSET 0
) AS m;

-- The kinds of alerts, which `Kind` in certjob/domain/alert_kinds.py lists. All views have the same columns, in this order:
--   subject  the last part of the alert's id, which names its row or event; null: the member number and row_id
--   until    the last day on which it is an alert; null: none
--   action   what to do if the cause alone does not say it
-- OFFSET 0 makes the planner look up mentors by index; it has no statistics for such small tables.
CREATE VIEW certjob_private.held_alerts WITH (security_invoker = true) AS
SELECT 'held' AS kind, h.organisation_id, NULL::uuid AS mentor_id, h.what AS subject, NULL::bigint AS row_id, h.since,
    NULL::date AS until, 'Too many changes at once, held back until someone decides' AS sentence, h.what AS cause,
    'check_data' AS action, h.reason AS error, 'stopped' AS state, NULL::timestamptz AS next_attempt_at,
    NULL::timestamptz AS last_failed_at, NULL::integer AS calls, h.mentors AS number, NULL::date AS day
FROM (
    SELECT r.organisation_id, 'changes' AS what, min(r.since) AS since,
        sum(r.mentors)::integer AS mentors,
        format(CASE sum(r.mentors) WHEN 1 THEN '%s mentor is held back (%s)' ELSE '%s mentors are held back (%s)' END,
            sum(r.mentors), string_agg(concat(r.mentors, ' ', replace(r.reason, '_', ' ')), ', ' ORDER BY r.place))
            AS reason
    FROM (
        SELECT n.organisation_id, n.reason, count(*) AS mentors, min(n.since) AS since,
            min(n.place) AS place
        FROM certjob_private.held_names AS n
        GROUP BY n.organisation_id, n.reason
    ) AS r
    GROUP BY r.organisation_id
    UNION ALL
    SELECT p.organisation_id, 'portal', p.since, p.mentors,
        'the portal lists fewer than half of the mentors who should be visible, so `reconcile` only hides'
    FROM certjob.portal_holds AS p
    JOIN certjob.organisations AS o ON o.id = p.organisation_id AND o.portal IS NOT NULL
) AS h;

CREATE VIEW certjob_private.never_reviewed_alerts WITH (security_invoker = true) AS
SELECT 'never_reviewed' AS kind, m.organisation_id, p.mentor_id, NULL::text AS subject, NULL::bigint AS row_id, p.since,
    NULL::date AS until, 'Not reviewed — mentor may still be visible on portal' AS sentence, 'not_reviewed' AS cause,
    'tell_operator' AS action, p.reason AS error, 'waiting' AS state, NULL::timestamptz AS next_attempt_at,
    NULL::timestamptz AS last_failed_at, NULL::integer AS calls, NULL::integer AS number, NULL::date AS day
FROM certjob.still_due AS p
CROSS JOIN LATERAL (
    SELECT o.organisation_id FROM certjob.mentors AS o WHERE o.id = p.mentor_id AND o.review_on <= p.as_of OFFSET 0
) AS m
WHERE p.what = 'not_reviewed';

-- Open pushes, and last hides of mentors who must not be visible that someone must make by hand: withdrawn ones, because the
-- organisation has no portal now, and those that someone has said to have made, if a later reading lists the contact, or if
-- there is no reading for 31 days.
CREATE VIEW certjob_private.push_alerts WITH (security_invoker = true) AS
SELECT a.kind, a.organisation_id, a.mentor_id, NULL::text AS subject, a.row_id, a.since, NULL::date AS until,
    'Dynamics sync pending — ' || CASE a.kind WHEN 'may_be_hidden' THEN 'mentor may still be hidden on portal'
        ELSE 'mentor may still be visible on portal' END AS sentence, a.cause, a.action, a.error, a.state,
    a.next_attempt_at, a.last_failed_at, a.calls, NULL::integer AS number, a.day
FROM (
    SELECT CASE WHEN p.is_urgent THEN 'may_be_visible' ELSE 'may_be_hidden' END AS kind,
        p.organisation_id, p.mentor_id, p.event_id AS row_id, p.since, p.cause,
        CASE
            WHEN p.cause <> 'later_day_on_portal' OR p.failure = 'portal_stopped' THEN 'tell_operator'
            WHEN p.status = 'blocked' THEN 'check_contact'
            WHEN p.is_claimed OR p.next_attempt_at <= now() THEN 'wait'
            ELSE 'retry'
        END AS action,
        p.error,
        CASE
            WHEN p.is_claimed THEN 'being_sent'
            WHEN p.status = 'blocked' THEN 'stopped'
            WHEN p.next_attempt_at <= now() THEN 'due'
            ELSE 'waiting'
        END AS state,
        p.next_attempt_at, p.last_failed_at, p.calls,
        CASE WHEN p.visible AND p.is_urgent THEN nullif(p.shown_until, '9999-12-31') END AS day
    FROM certjob.open_pushes AS p
    WHERE p.is_alert
    UNION ALL
    SELECT 'may_be_visible', m.organisation_id, e.mentor_id, e.id,
        coalesce(e.delivered_at + CASE WHEN is_listed THEN interval '0' ELSE interval '31 days' END, e.wanted_at),
        'hide_by_hand', 'tell_operator', e.last_error, 'stopped', NULL, NULL, NULL, NULL
    FROM certjob.portal_sync_events AS e
    CROSS JOIN LATERAL (
        SELECT o.organisation_id, o.dynamics_contact_id FROM certjob.mentors AS o
        WHERE o.id = e.mentor_id AND certjob_private.must_be_hidden(o, current_date) OFFSET 0
    ) AS m
    CROSS JOIN LATERAL certjob_private.is_listed(e.claim_contact_id, e.delivered_at) AS is_listed
    WHERE NOT e.visible AND (e.status = 'withdrawn' OR e.hidden_by IS NOT NULL)
        AND (e.hidden_by IS NULL OR coalesce(is_listed, e.delivered_at < now() - interval '31 days'))
        AND NOT (e.hidden_by IS NOT NULL AND m.dynamics_contact_id IS DISTINCT FROM e.claim_contact_id
            AND certjob_private.contact_is_taken(e.mentor_id))
        AND NOT EXISTS (
            SELECT FROM certjob.portal_sync_events AS later WHERE later.mentor_id = e.mentor_id AND later.id > e.id
        )
) AS a;

-- Reminders that have failed, for 14 days from their threshold, or from queueing if that is later, as after an import. Also
-- those that have waited for more than a day. They are retried until they are outdated, and count as failed if the mail
-- server deferred or rejected them for a day: greylisting ends within a day, a full mailbox may
-- not. A delay of more than 25 hours was written by a wrong clock.
CREATE VIEW certjob_private.reminder_alerts WITH (security_invoker = true) AS
SELECT CASE WHEN late.failure THEN 'failed_reminders' ELSE 'waiting_reminders' END AS kind, m.organisation_id, l.mentor_id,
    NULL::text AS subject, l.id AS row_id,
    CASE l.status WHEN 'failed' THEN l.next_attempt_at
        ELSE least(greatest(l.deferred_since, l.queued_at) + interval '1 day', now()) END AS since,
    CASE l.status WHEN 'failed' THEN greatest(l.expires_on - l.threshold_days, l.queued_at::date) + 14 END AS until,
    CASE WHEN late.failure THEN 'Reminder not delivered' ELSE 'Reminder has waited for more than a day' END AS sentence,
    coalesce(l.failure_code, 'mail_stopped') AS cause, 'tell_operator' AS action, l.last_error AS error,
    CASE
        WHEN l.status = 'failed' THEN 'stopped'
        WHEN l.claim_token IS NOT NULL AND l.next_attempt_at > now() THEN 'being_sent'
        ELSE 'waiting'
    END AS state,
    CASE l.status WHEN 'pending' THEN l.next_attempt_at END AS next_attempt_at, NULL::timestamptz AS last_failed_at,
    NULL::integer AS calls, NULL::integer AS number, l.expires_on AS day
FROM certjob.cert_notification_log AS l
CROSS JOIN LATERAL (
    SELECT l.status = 'failed' OR coalesce(l.deferred_since >= l.queued_at, false) AS failure
) AS late
CROSS JOIN LATERAL (
    SELECT o.organisation_id FROM certjob.mentors AS o WHERE o.id = l.mentor_id OFFSET 0
) AS m
WHERE l.status = 'failed' OR (l.status = 'pending'
    AND (greatest(l.deferred_since, l.queued_at) < now() - interval '1 day'
        OR l.next_attempt_at > now() + interval '25 hours'));

-- Alerts that a coordinator can act on, also acknowledged ones and those past their last day (`until`).
--   action  request_portal_resync helps for retry and check_contact. With docs/examples/mirror.sql, coordinators correct
--           facts in the app.
CREATE VIEW certjob.all_alerts WITH (security_invoker = true) AS
SELECT concat_ws(':', o.slug, a.kind, coalesce(a.subject, m.member_no), CASE WHEN a.subject IS NULL THEN a.row_id END)
        AS alert_id, a.kind, a.organisation_id,
    o.slug AS organisation, a.mentor_id, m.member_no, coalesce(m.full_name, m.member_no) AS full_name, a.row_id,
    a.since, a.until, a.sentence, a.cause,
    CASE
        WHEN a.cause IN ('queued', 'mail_delayed') OR a.cause IN ('portal_down', 'change_refused') AND a.state = 'due'
            THEN 'wait'
        WHEN a.cause = 'portal_down' THEN 'retry'
        WHEN a.cause IN ('no_contact_id', 'contact_not_found', 'no_address', 'wrong_address')
            AND (SELECT to_regnamespace('certjob_mirror') IS NOT NULL) THEN 'correct_in_app'
        WHEN a.cause IN ('no_contact_id', 'contact_not_found') THEN 'correct_contact_id'
        WHEN a.cause = 'change_refused' THEN 'check_contact'
        WHEN a.cause = 'hide_by_hand' THEN 'hide_by_hand'
        WHEN a.cause IN ('no_address', 'wrong_address') THEN 'correct_address'
        ELSE a.action
    END AS action,
    a.error, a.state, a.next_attempt_at, a.last_failed_at, a.calls, a.number, a.day, m.visible_until
FROM (
    TABLE certjob_private.held_alerts UNION ALL TABLE certjob_private.never_reviewed_alerts
    UNION ALL TABLE certjob_private.push_alerts UNION ALL TABLE certjob_private.reminder_alerts
) AS a
JOIN certjob.organisations AS o ON o.id = a.organisation_id
LEFT JOIN LATERAL (
    SELECT n.member_no, n.full_name,
        CASE WHEN n.portal_visible AND n.certified_until > '0001-01-01' THEN least(n.certified_until, '2099-12-31') END
            AS visible_until
    FROM certjob.mentors AS n WHERE n.id = a.mentor_id OFFSET 0
) AS m ON true;

-- Alerts that someone has muted until a day. `Kind` in certjob/domain/alert_kinds.py has the limits; no one can mute that a
-- mentor may be visible. An alert that began later is not covered, such as a second failure of the same reminder.
CREATE TABLE certjob.acknowledgements (
    alert_id        text PRIMARY KEY,
    because         text NOT NULL CHECK (because <> '' AND length(because) <= 1000),
    until           date NOT NULL,  -- the last day
    acknowledged_by text NOT NULL,  -- a user of the machine
    acknowledged_at timestamptz DEFAULT now() NOT NULL
);

-- What a coordinator can act on today, as `certjob alerts` lists it. docs/dashboard.md describes the columns.
CREATE VIEW certjob.alerts WITH (security_invoker = true) AS
SELECT a.alert_id, a.kind, a.organisation_id, a.organisation, a.mentor_id, a.member_no, a.full_name, a.row_id,
    a.since, a.sentence, a.cause, a.action, a.error, a.state, a.next_attempt_at, a.last_failed_at, a.calls, a.number,
    a.day, a.visible_until, a.kind = 'may_be_visible' AND EXISTS (
        SELECT FROM certjob.portal_sync_events AS e
        WHERE e.id = a.row_id AND NOT e.visible AND (e.claim_token IS NULL OR e.next_attempt_at <= now())
    ) AS can_confirm_hidden
FROM certjob.all_alerts AS a
WHERE (a.until IS NULL OR a.until >= current_date) AND NOT EXISTS (
    SELECT FROM certjob.acknowledgements AS k
    WHERE k.alert_id = a.alert_id AND k.until >= current_date AND k.acknowledged_at >= a.since
);

-- Last hides that someone has made by hand, and whether a later reading of the portal says more.
CREATE VIEW certjob_private.hidden_by_hand WITH (security_invoker = true) AS
SELECT e.id AS event_id, e.mentor_id, e.delivered_at AS since, e.hidden_because AS because, e.hidden_by, coalesce((
        SELECT coalesce(c.full_name, c.email) FROM certjob.coordinators AS c WHERE c.id::text = e.hidden_by
    ), regexp_replace(e.hidden_by, '^cli:', '')) AS name,
    certjob_private.is_listed(e.claim_contact_id, e.delivered_at) IS NOT NULL AS is_read
FROM certjob.portal_sync_events AS e
WHERE NOT e.visible AND e.hidden_by IS NOT NULL
    AND NOT EXISTS (
        SELECT FROM certjob.portal_sync_events AS later WHERE later.mentor_id = e.mentor_id AND later.id > e.id
    );

-- Mentors who must not be visible on their portal, without a confirmation that their contact is hidden. They are due for a
-- review, or have an open hide. A portal with a date column hides a mentor after the latest day that it may have, unless a
-- later reading lists the contact.
--   hidden_at    when the portal has hidden the contact before
--   is_replaced  the contact is another one than that of the last confirmation
CREATE FUNCTION certjob_private.unhidden_mentors(today date, zone text DEFAULT 'UTC') RETURNS TABLE (
    mentor_id uuid, organisation_id uuid, hidden_at timestamptz, is_replaced boolean
)
LANGUAGE sql STABLE AS $$
    SELECT known.id, known.organisation_id, known.hidden_at, known.is_replaced
    FROM (
        SELECT DISTINCT ON (m.id) m.id, m.organisation_id, m.dynamics_contact_id, e.visible,
            e.claim_contact_id <> m.dynamics_contact_id AS is_replaced,
            CASE WHEN coalesce(open.shown_until, e.shown_until) < today THEN greatest(e.delivered_at,
                (coalesce(open.shown_until, e.shown_until) + 1)::timestamp AT TIME ZONE zone) END AS hidden_at
        FROM (
            SELECT due.id FROM certjob.mentors AS due WHERE due.review_on <= today
            UNION
            SELECT h.mentor_id FROM certjob.portal_sync_events AS h
            WHERE h.status IN ('pending', 'blocked') AND NOT h.visible
        ) AS candidate
        JOIN certjob.mentors AS m ON m.id = candidate.id
        JOIN certjob.organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
        LEFT JOIN certjob.portal_sync_events AS e ON e.mentor_id = m.id AND e.status = 'delivered'
        LEFT JOIN certjob.portal_sync_events AS open ON open.mentor_id = m.id AND open.status IN ('pending', 'blocked')
        WHERE certjob_private.must_be_hidden(m, today)
        ORDER BY m.id, e.id DESC
    ) AS known
    WHERE known.is_replaced
        OR CASE WHEN known.hidden_at IS NULL THEN known.visible OR known.dynamics_contact_id IS NOT NULL
            ELSE known.visible AND known.hidden_at < (SELECT r.read_at FROM certjob.portal_last_reading AS r)
                AND known.dynamics_contact_id IN (SELECT unnest(r.visible) FROM certjob.portal_last_reading AS r) END;
$$;

-- How long mentors were visible who must not be: exposures that have ended after a moment, or that last (`ended_at` is
-- null). Computed from the pushes, because the confirmed ones are the changes on the portal. An exposure begins with the
-- fact or, if no fact has a time, with the hide's request, but not before the show. It ends with the hide, or with the
-- last day that the portal had confirmed.
CREATE FUNCTION certjob_private.exposures(after timestamptz, today date, zone text) RETURNS TABLE (
    mentor_id uuid, began_at timestamptz, ended_at timestamptz
)
LANGUAGE sql STABLE AS $$
    SELECT hide.mentor_id, span.began_at, hide.ended_at
    FROM (
        SELECT u.mentor_id, coalesce(e.wanted_at, now()) AS wanted_at, u.hidden_at AS shown_at, u.is_replaced,
            NULL::timestamptz AS ended_at
        FROM certjob_private.unhidden_mentors(today, zone) AS u
        LEFT JOIN certjob.portal_sync_events AS e
            ON e.mentor_id = u.mentor_id AND e.status IN ('pending', 'blocked') AND NOT e.visible
        UNION ALL
        SELECT e.mentor_id, e.wanted_at, show.delivered_at, false, least(e.delivered_at, show.until)
        FROM certjob.portal_sync_events AS e
        CROSS JOIN LATERAL (
            SELECT s.visible, s.delivered_at, s.claim_contact_id,
                (s.shown_until + 1)::timestamp AT TIME ZONE zone AS until
            FROM certjob.portal_sync_events AS s
            WHERE s.mentor_id = e.mentor_id AND s.status = 'delivered' AND s.id < e.id
            ORDER BY s.id DESC
            LIMIT 1
        ) AS show
        WHERE e.status = 'delivered' AND NOT e.visible AND e.delivered_at >= after
            AND show.visible AND show.claim_contact_id = e.claim_contact_id
    ) AS hide
    JOIN certjob.mentors AS m ON m.id = hide.mentor_id
    JOIN certjob.organisations AS o ON o.id = m.organisation_id
    CROSS JOIN LATERAL (
        SELECT min(f.at) AS at
        FROM (
            SELECT m.left_at
            UNION ALL
            SELECT p.paused_at
            FROM certjob.mentor_pauses AS p
            WHERE p.mentor_id = hide.mentor_id AND (p.lifted_at IS NULL OR p.lifted_at > hide.wanted_at)
            UNION ALL
            SELECT max(least(c.revoked_at, (c.expires_on + 1)::timestamp AT TIME ZONE zone))
            FROM certjob.certificates AS c
            WHERE c.mentor_id = hide.mentor_id AND c.kind <> ALL (o.optional_kinds)
                AND c.issued_on < (hide.wanted_at AT TIME ZONE zone)::date  -- others were entered later
            GROUP BY c.kind
        ) AS f (at)
        WHERE f.at <= hide.wanted_at
    ) AS fact
    CROSS JOIN LATERAL (
        SELECT CASE WHEN hide.is_replaced AND hide.shown_at >= fact.at THEN hide.wanted_at
            ELSE greatest(least(fact.at, hide.wanted_at), hide.shown_at) END AS began_at
    ) AS span
    WHERE hide.ended_at IS NULL OR (hide.ended_at >= after AND span.began_at < hide.ended_at);
$$;

-- The kinds that only an operator can act on. `name` is the person if that is not a mentor.
CREATE FUNCTION certjob_private.no_full_run_alert(today date) RETURNS TABLE (
    kind text, organisation_id uuid, mentor_id uuid, subject text, name text, row_id bigint, since timestamptz,
    sentence text, cause text, error text, number integer, day date
)
LANGUAGE sql STABLE AS $$
    SELECT 'no_full_run' AS kind, NULL::uuid AS organisation_id, NULL::uuid AS mentor_id,
        coalesce(last_run.as_of::text, 'never') AS subject, NULL AS name, NULL::bigint AS row_id,
        coalesce(last_run.finished_at, first_run.started_at) + interval '26 hours' AS since,
        'No full run' AS sentence, 'not_run' AS cause,
        coalesce('No full run since ' || to_char(last_run.as_of, 'FMDD FMMonth YYYY'), 'No full run has finished')
            || CASE unhidden.number
                WHEN 0 THEN ''
                WHEN 1 THEN '; 1 mentor who must not be visible may still be visible'
                ELSE format('; %s mentors who must not be visible may still be visible', unhidden.number)
            END || CASE unseen.number
                WHEN 0 THEN ''
                WHEN 1 THEN '; 1 mentor with changed facts waits for a review'
                ELSE format('; %s mentors with changed facts wait for a review', unseen.number)
            END AS error,
        unhidden.number, last_run.as_of AS day
    FROM (SELECT min(r.started_at) AS started_at FROM certjob.job_runs AS r) AS first_run
    LEFT JOIN LATERAL (
        SELECT r.as_of, r.finished_at FROM certjob.job_runs AS r
        WHERE r.command = 'run' AND r.organisation IS NULL AND r.outcome IN ('ok', 'attention')
            AND r.finished_at <= now() + interval '1 minute'  -- a later one was recorded by a wrong clock
        ORDER BY r.finished_at DESC LIMIT 1
    ) AS last_run ON true
    CROSS JOIN LATERAL (
        SELECT count(*)::integer AS number
        FROM certjob_private.unhidden_mentors(today)
        WHERE first_run.started_at IS NOT NULL
    ) AS unhidden
    CROSS JOIN LATERAL (
        SELECT count(*) AS number FROM certjob.mentors AS m
        WHERE m.review_on = '-infinity' AND first_run.started_at IS NOT NULL
    ) AS unseen
    WHERE coalesce(last_run.finished_at, first_run.started_at) < now() - interval '26 hours';
$$;

-- Contacts that the last reading has shown, or that a mentor had until now. The contact may belong to a mentor of an
-- organisation without a portal.
CREATE VIEW certjob_private.unknown_contact_alerts WITH (security_invoker = true) AS
SELECT 'unknown_contacts' AS kind, NULL::uuid AS organisation_id, m.id AS mentor_id,
    concat_ws(':', u.contact_id, (u.first_seen_at AT TIME ZONE 'UTC')::date) AS subject,
    NULL::text AS name, NULL::bigint AS row_id, u.first_seen_at AS since,
    'Contact of no mentor is visible on portal' AS sentence, 'unknown_contact' AS cause, NULL::text AS error,
    NULL::integer AS number, NULL::date AS day
FROM certjob.portal_unknown_contacts AS u
LEFT JOIN certjob.mentors AS m ON m.dynamics_contact_id = u.contact_id
LEFT JOIN certjob.organisations AS o ON o.id = m.organisation_id
WHERE u.gone_at IS NULL AND o.portal IS NULL;

CREATE VIEW certjob_private.portal_not_read_alerts WITH (security_invoker = true) AS
SELECT 'portal_not_read' AS kind, NULL::uuid AS organisation_id, NULL::uuid AS mentor_id,
    coalesce(last_reading.at::date::text, 'never') AS subject, NULL::text AS name, NULL::bigint AS row_id,
    coalesce(last_reading.at, first_push.at) + interval '3 days' AS since, 'Portal not read for three days' AS sentence,
    CASE WHEN last_try.stop IS NULL THEN 'not_read' ELSE 'reading_failed' END AS cause,
    coalesce('The portal was last read on ' || to_char(last_reading.at, 'FMDD FMMonth YYYY'),
        'The portal has never been read') || coalesce('; `certjob reconcile` stopped: ' || last_try.stop, '') AS error,
    NULL::integer AS number, last_reading.at::date AS day
FROM (SELECT max(r.read_at) AS at FROM certjob.portal_last_reading AS r) AS last_reading
LEFT JOIN LATERAL (
    SELECT r.counts ->> 'portal_stop' AS stop FROM certjob.job_runs AS r
    WHERE r.command = 'reconcile' AND r.finished_at > now() - interval '26 hours'
    ORDER BY r.finished_at DESC LIMIT 1
) AS last_try ON true
CROSS JOIN LATERAL (
    SELECT min(e.delivered_at) AS at FROM certjob.portal_sync_events AS e
    WHERE last_reading.at IS NULL AND e.status = 'delivered'
) AS first_push
WHERE coalesce(last_reading.at, first_push.at) < now() - interval '3 days'
    AND EXISTS (SELECT FROM certjob.organisations AS o WHERE o.portal IS NOT NULL);

-- certjob_mirror.sync() has failed or left out facts, in the last run that called it.
CREATE VIEW certjob_private.facts_missing_alerts WITH (security_invoker = true) AS
SELECT 'facts_missing' AS kind, NULL::uuid AS organisation_id, NULL::uuid AS mentor_id, 'not_copied' AS subject,
    NULL::text AS name, NULL::bigint AS row_id, c.failing_since AS since, 'Facts of the app not copied' AS sentence,
    'not_copied' AS cause, CASE WHEN length(c.problem) > 1000 THEN left(c.problem, 1000) || ' …' ELSE c.problem END
        AS error, NULL::integer AS number, NULL::date AS day
FROM certjob.facts_last_copy AS c
WHERE c.failing_since IS NOT NULL AND EXISTS (
    SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname = 'certjob_mirror' AND p.proname = 'sync'
);

-- Without a valid client secret, the function can hide no one. Its end is a second alert.
CREATE VIEW certjob_private.secret_ends_alerts WITH (security_invoker = true) AS
SELECT 'secret_ends' AS kind, NULL::uuid AS organisation_id, NULL::uuid AS mentor_id, r.secret_until::text AS subject,
    NULL::text AS name, NULL::bigint AS row_id,
    (r.secret_until + CASE WHEN r.secret_until < current_date THEN 1 ELSE -30 END)::timestamp AT TIME ZONE 'UTC' AS since,
    'Client secret of the portal''s function ends' AS sentence, 'secret_ends' AS cause,
    'The last day of the client secret is ' || to_char(r.secret_until, 'FMDD FMMonth YYYY') AS error,
    NULL::integer AS number, r.secret_until AS day
FROM certjob.portal_last_reading AS r
WHERE r.secret_until - 30 <= current_date;

-- As for reminders.
CREATE VIEW certjob_private.digest_alerts WITH (security_invoker = true) AS
SELECT CASE WHEN late.failure THEN 'failed_digests' ELSE 'waiting_digests' END AS kind, c.organisation_id,
    NULL::uuid AS mentor_id, d.digest_on || ':' || d.id AS subject, coalesce(c.full_name, c.email) AS name, d.id AS row_id,
    CASE d.status WHEN 'failed' THEN d.next_attempt_at ELSE least(d.queued_at + interval '1 day', now()) END AS since,
    CASE WHEN late.failure THEN 'Digest not delivered' ELSE 'Digest has waited for more than a day' END AS sentence,
    coalesce(d.failure_code, 'mail_stopped') AS cause, d.last_error AS error, NULL::integer AS number, d.digest_on AS day
FROM certjob.coordinator_digests AS d
JOIN certjob.coordinators AS c ON c.id = d.coordinator_id
CROSS JOIN LATERAL (SELECT d.status = 'failed' OR coalesce(d.deferred_since >= d.queued_at, false) AS failure) AS late
WHERE d.status = 'failed' OR (d.status = 'pending'
    AND (d.queued_at < now() - interval '1 day' OR d.next_attempt_at > now() + interval '25 hours'));

-- All alerts of a day: those of the view, and those that only an operator can act on.
--   number  also the number of mentors who must not be visible and may still be, while no full run has finished
--   day     also the day of the digest, of the last full run, or of the last reading of the portal
--   keys    what runs and digests report once: the alert with its cause, or each mentor of a hold with the reason; hashes,
--           because they outlive an erased mentor
CREATE FUNCTION certjob.current_alerts(today date) RETURNS TABLE (
    alert_id text, kind text, organisation_id uuid, organisation text, mentor_id uuid, member_no text, full_name text,
    row_id bigint, since timestamptz, sentence text, cause text, error text, state text, next_attempt_at timestamptz,
    last_failed_at timestamptz, calls integer, number integer, day date, keys text[],
    is_acknowledged boolean, acknowledged_until date, acknowledged_because text
)
LANGUAGE sql STABLE AS $$
    WITH operator_alerts AS (
        SELECT r.* FROM certjob_private.no_full_run_alert(today) AS r
        UNION ALL TABLE certjob_private.unknown_contact_alerts UNION ALL TABLE certjob_private.portal_not_read_alerts
        UNION ALL TABLE certjob_private.facts_missing_alerts UNION ALL TABLE certjob_private.secret_ends_alerts
        UNION ALL TABLE certjob_private.digest_alerts
    ), mail_stop AS (
        -- Why the mail stage stopped, unless a later run has sent mail.
        SELECT r.counts ->> 'mail_stop' AS reason
        FROM certjob.job_runs AS r
        WHERE r.command IN ('run', 'deliver') AND r.finished_at > now() - interval '2 days'
            AND (r.counts ->> 'mail_stop' IS NOT NULL OR r.counts #>> '{reminders,sent}' <> '0'
                OR r.counts #>> '{digests,sent}' <> '0')
        ORDER BY r.finished_at DESC LIMIT 1
    ), every_alert AS (
        SELECT a.alert_id, a.kind, a.organisation_id, a.organisation, a.mentor_id, a.member_no, a.full_name, a.row_id,
            a.since, a.sentence, a.cause, a.error, a.state, a.next_attempt_at, a.last_failed_at, a.calls, a.number, a.day
        FROM certjob.all_alerts AS a
        WHERE a.until IS NULL OR a.until >= today
        UNION ALL
        SELECT CASE WHEN a.organisation_id IS NULL THEN 'all' ELSE o.slug END || ':' || a.kind || ':' || a.subject,
            a.kind, a.organisation_id, o.slug, a.mentor_id, m.member_no,
            coalesce(a.name, m.full_name, m.member_no), a.row_id, a.since, a.sentence, a.cause, a.error, 'stopped',
            NULL, NULL, NULL, a.number, a.day
        FROM operator_alerts AS a
        LEFT JOIN certjob.mentors AS m ON m.id = a.mentor_id
        LEFT JOIN certjob.organisations AS o ON o.id = coalesce(a.organisation_id, m.organisation_id)
    )
    SELECT a.alert_id, a.kind, a.organisation_id, a.organisation, a.mentor_id, a.member_no, a.full_name, a.row_id,
        a.since, a.sentence, a.cause,
        CASE WHEN a.kind LIKE 'waiting%' THEN coalesce((SELECT s.reason FROM mail_stop AS s), a.error)
            ELSE a.error END,
        a.state, a.next_attempt_at, a.last_failed_at, a.calls, a.number, a.day,
        coalesce((
            SELECT array_agg(md5(concat_ws(':', a.alert_id, h.mentor_id, h.reason)))
            FROM certjob_private.held_names AS h
            WHERE a.kind = 'held' AND a.cause = 'changes' AND h.organisation_id = a.organisation_id
        ), ARRAY[md5(concat_ws(':', a.alert_id, a.cause))]),
        k.alert_id IS NOT NULL, k.until, k.because
    FROM every_alert AS a
    LEFT JOIN certjob.acknowledgements AS k
        ON k.alert_id = a.alert_id AND k.until >= today AND k.acknowledged_at >= a.since;
$$;
