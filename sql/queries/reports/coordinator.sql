-- name: describe_app_roles
-- Whether this is a database of Supabase's shape: else there is no app whose view could be tried. The catalog is asked,
-- since a login that may not enter the schema auth gets an error from to_regprocedure.
SELECT
    to_regrole('authenticated') IS NOT NULL AND EXISTS (
        SELECT
        FROM pg_proc AS p
        JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = 'auth' AND p.proname = 'uid' AND p.pronargs = 0
    ) AS is_supabase,
    pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on' AS is_read_only

-- name: find_coordinator
-- The organisation of a user of the app. No row: this user is no coordinator.
SELECT organisation_id FROM coordinators WHERE id = %(user_id)s

-- name: list_strangers
-- Some mentors of other organisations: the first ones, and some with rows in each of the tables that are mostly empty.
SELECT m.id
FROM mentors AS m
WHERE m.organisation_id IS DISTINCT FROM %(organisation_id)s
    AND m.id IN (
        (SELECT s.id FROM mentors AS s WHERE s.organisation_id IS DISTINCT FROM %(organisation_id)s LIMIT 100)
        UNION (SELECT p.mentor_id FROM mentor_pauses AS p ORDER BY p.paused_at DESC LIMIT 100)
        UNION (SELECT t.mentor_id FROM certificate_transitions AS t ORDER BY t.id DESC LIMIT 100)
        UNION (SELECT l.mentor_id FROM cert_notification_log AS l ORDER BY l.id DESC LIMIT 100)
        UNION (SELECT e.mentor_id FROM portal_sync_events AS e ORDER BY e.id DESC LIMIT 100)
        UNION (SELECT f.mentor_id FROM dynamics_sync_failures AS f WHERE f.resolved_at IS NULL LIMIT 100)
        UNION (SELECT p.mentor_id FROM review_problems AS p LIMIT 100)
    )

-- name: count_what_is_seen
-- As the coordinator: what the app shows them.
SELECT
    (SELECT coalesce(array_agg(o.slug ORDER BY o.slug), '{}') FROM public.organisations AS o) AS organisations,
    (SELECT count(*) FROM public.mentors) AS mentors,
    (SELECT count(*) FROM public.portal_alerts) AS alerts

-- name: list_tables_with_strangers
-- As the coordinator: the tables in which rows of these mentors are visible. There must be none.
SELECT seen.name
FROM (
    SELECT 'mentors' AS name, count(*) AS number FROM public.mentors WHERE id = ANY (%(ids)s)
    UNION ALL
    SELECT 'certificates', count(*) FROM public.certificates WHERE mentor_id = ANY (%(ids)s)
    UNION ALL
    SELECT 'mentor_pauses', count(*) FROM public.mentor_pauses WHERE mentor_id = ANY (%(ids)s)
    UNION ALL
    SELECT 'certificate_transitions', count(*) FROM public.certificate_transitions WHERE mentor_id = ANY (%(ids)s)
    UNION ALL
    SELECT 'cert_notification_log', count(*) FROM public.cert_notification_log WHERE mentor_id = ANY (%(ids)s)
    UNION ALL
    SELECT 'portal_sync_events', count(*) FROM public.portal_sync_events WHERE mentor_id = ANY (%(ids)s)
    UNION ALL
    SELECT 'dynamics_sync_failures', count(*) FROM public.dynamics_sync_failures WHERE mentor_id = ANY (%(ids)s)
    UNION ALL
    SELECT 'portal_alerts', count(*) FROM public.portal_alerts WHERE mentor_id = ANY (%(ids)s)
    UNION ALL
    SELECT 'review_problems', count(*) FROM public.review_problems WHERE mentor_id = ANY (%(ids)s)
    UNION ALL
    SELECT 'held_reviews', count(*) FROM public.held_reviews WHERE organisation_id IS DISTINCT FROM %(organisation_id)s
    UNION ALL
    SELECT 'coordinators', count(*) FROM public.coordinators WHERE organisation_id IS DISTINCT FROM %(organisation_id)s
) AS seen
WHERE seen.number > 0

-- name: list_rights_of_certjob
-- As the coordinator: what only certjob may do, and this user may do, too. There must be nothing.
SELECT asked.what
FROM (
    VALUES
        ('write mentors.portal_visible', has_column_privilege('public.mentors', 'portal_visible', 'UPDATE')),
        ('write mentors.review_on', has_column_privilege('public.mentors', 'review_on', 'UPDATE')),
        ('write certificates.status', has_column_privilege('public.certificates', 'status', 'UPDATE')),
        ('write cert_notification_log', has_any_column_privilege('public.cert_notification_log', 'UPDATE')),
        ('write portal_sync_events', has_any_column_privilege('public.portal_sync_events', 'UPDATE')),
        ('write dynamics_sync_failures', has_any_column_privilege('public.dynamics_sync_failures', 'UPDATE')),
        ('read job_runs', has_any_column_privilege('public.job_runs', 'SELECT'))
) AS asked (what, is_allowed)
WHERE asked.is_allowed

-- name: take_portal_mentor
-- A mentor whom nobody else holds, to ask a resync for: if possible one who does not wait for a review.
SELECT m.id
FROM mentors AS m
WHERE m.organisation_id = %(organisation_id)s AND m.dynamics_contact_id IS NOT NULL
ORDER BY m.review_on <= current_date, m.id
LIMIT 1
FOR NO KEY UPDATE SKIP LOCKED

-- name: try_portal_resync
-- As the coordinator: the app's "try again now".
SELECT event_version FROM public.request_portal_resync(%(mentor_id)s)
