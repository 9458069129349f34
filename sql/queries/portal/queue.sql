-- name: queue_portal_events
-- A new value replaces an open one. The new version tells a call in flight that its value is old. A live lease is
-- kept, because the contact must not get a second call. If the value is the same, `wanted_at` is kept for the alerts.
-- %(read_until)s is the last day that a reading has found. The order of the mentors prevents deadlocks. OFFSET 0, because a
-- join would read all mentors in this order.
INSERT INTO portal_sync_events AS e (mentor_id, visible, wanted_until, sure_until, shown_until, run_id)
SELECT n.mentor_id, n.visible, n.wanted_until, coalesce(n.read_until, d.sure_until), coalesce(n.read_until, d.shown_until),
    %(run_id)s
FROM unnest(
    %(mentor_ids)b::uuid[], %(visible)b::boolean[], %(wanted_until)b::date[], %(read_until)b::date[]
) AS n (mentor_id, visible, wanted_until, read_until)
CROSS JOIN LATERAL (SELECT o AS mentor FROM mentors AS o WHERE o.id = n.mentor_id OFFSET 0) AS m
CROSS JOIN LATERAL certjob_private.days_on_portal(m.mentor) AS d
ORDER BY n.mentor_id
ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
SET visible = excluded.visible,
    wanted_until = excluded.wanted_until,
    version = e.version + 1,
    status = 'pending',
    attempts = 0,
    wanted_at = CASE
        WHEN (e.visible, e.wanted_until) IS NOT DISTINCT FROM (excluded.visible, excluded.wanted_until) THEN e.wanted_at
        ELSE now()
    END,
    last_error = NULL,
    failure_code = NULL,
    run_id = excluded.run_id,
    claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END,
    next_attempt_at = CASE
        WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.next_attempt_at ELSE now()
    END

-- name: reopen_portal_events
-- Make all open events due now, as if their values were new, blocked ones too. The new version tells a call in flight
-- that it does not settle the event. Locked events are skipped, for example while the app corrects a contact ID.
WITH open AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE status IN ('pending', 'blocked')
    ORDER BY mentor_id
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE portal_sync_events AS e
SET version = e.version + 1,
    status = 'pending',
    attempts = 0,
    run_id = %(run_id)s,
    claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END,
    next_attempt_at = CASE
        WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.next_attempt_at ELSE now()
    END
FROM open
WHERE e.id = open.id

-- name: withdraw_portal_events
-- Withdraw the open events of mentors in an organisation without a portal. The order of the mentors prevents
-- deadlocks. A call in flight keeps its lease. If the mentor gets a portal again, the next call waits for its end.
-- %(hidden)s must not be visible. If the portal may still show one, a withdrawn hide is the alert that asks a person.
WITH open AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE mentor_id = ANY (%(mentor_ids)b::uuid[]) AND status IN ('pending', 'blocked')
    ORDER BY mentor_id
    FOR NO KEY UPDATE
), shown AS (
    INSERT INTO portal_sync_events (mentor_id, visible, status, sure_until, shown_until, run_id)
    SELECT m.id, false, 'withdrawn', call.sure_until, call.shown_until, %(run_id)s
    FROM mentors AS m
    CROSS JOIN LATERAL (
        SELECT e.visible FROM portal_sync_events AS e WHERE e.mentor_id = m.id ORDER BY e.id DESC LIMIT 1
    ) AS last
    CROSS JOIN LATERAL (
        SELECT e.sure_until, e.shown_until, e.delivered_at
        FROM portal_sync_events AS e
        WHERE e.mentor_id = m.id AND e.claim_contact_id = m.dynamics_contact_id
        ORDER BY e.id DESC
        LIMIT 1
    ) AS call
    WHERE m.id = ANY (%(hidden)b::uuid[])
        AND last.visible
        AND call.shown_until >= %(today)s
        AND certjob_private.is_listed(m.dynamics_contact_id, call.delivered_at) IS NOT FALSE
)
UPDATE portal_sync_events AS e
SET status = 'withdrawn',
    version = e.version + 1,
    claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END
FROM open
WHERE e.id = open.id
RETURNING e.mentor_id
