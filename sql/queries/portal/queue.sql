-- name: queue_portal_events
-- A new value replaces an open one. The new version tells a call in flight that its value is old. A live lease is
-- kept, because the contact must not get a second call. If the value is the same, `wanted_at` is kept for the alerts.
-- An open show stays a show when its last day moves. A show restricts if the portal has a later last day, which its last
-- confirmation or a reading (%(is_too_late)s) has shown. moved_from is then this later day. A portal with days that has
-- never confirmed one is assumed to have the previous day, because readings have agreed with it. The order of the
-- mentors prevents deadlocks.
INSERT INTO portal_sync_events AS e (mentor_id, visible, visible_until, moved_from, restricts, run_id)
SELECT n.mentor_id, n.visible, n.visible_until,
    CASE WHEN portal.day > n.visible_until AND NOT n.is_too_late THEN portal.day ELSE n.moved_from END,
    n.visible AND (n.is_too_late OR coalesce(portal.day > n.visible_until, false)), %(run_id)s
FROM unnest(
    %(mentor_ids)b::uuid[], %(visible)b::boolean[], %(visible_until)b::date[], %(moved_from)b::date[],
    %(is_too_late)b::boolean[]
) AS n (mentor_id, visible, visible_until, moved_from, is_too_late)
LEFT JOIN LATERAL (
    SELECT d.id,
        CASE WHEN d.visible AND d.dates AND d.claim_contact_id = m.dynamics_contact_id THEN d.visible_until END AS day
    FROM portal_sync_events AS d
    JOIN mentors AS m ON m.id = d.mentor_id
    WHERE d.mentor_id = n.mentor_id AND d.delivered_at IS NOT NULL
    ORDER BY d.delivered_at DESC, d.id DESC
    LIMIT 1
) AS confirmed ON n.visible
LEFT JOIN portal_last_reading AS r ON r.only_one AND r.dates
CROSS JOIN LATERAL (
    SELECT CASE WHEN confirmed.id IS NULL AND r.dates THEN n.moved_from ELSE confirmed.day END AS day
) AS portal
ORDER BY n.mentor_id
ON CONFLICT (mentor_id) WHERE status IN ('pending', 'blocked') DO UPDATE
SET visible = excluded.visible,
    visible_until = excluded.visible_until,
    moved_from = CASE
        WHEN excluded.restricts THEN excluded.moved_from
        WHEN excluded.visible AND (e.restricts OR excluded.moved_from IS NOT NULL) THEN e.moved_from
    END,
    restricts = excluded.restricts
        OR (e.restricts AND excluded.visible AND coalesce(e.moved_from > excluded.visible_until, true)),
    version = e.version + 1,
    status = 'pending',
    attempts = 0,
    wanted_at = CASE
        WHEN e.visible = excluded.visible AND e.restricts = (
            excluded.restricts OR (e.restricts AND coalesce(e.moved_from > excluded.visible_until, true))
        ) THEN e.wanted_at
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
-- deadlocks. A call in flight keeps its lease. If the mentor comes back, the next call waits for its end.
WITH open AS MATERIALIZED (
    SELECT id
    FROM portal_sync_events
    WHERE mentor_id = ANY (%(mentor_ids)b::uuid[]) AND status IN ('pending', 'blocked')
    ORDER BY mentor_id
    FOR NO KEY UPDATE
)
UPDATE portal_sync_events AS e
SET status = 'withdrawn',
    version = e.version + 1,
    claim_token = CASE WHEN e.claim_token IS NOT NULL AND e.next_attempt_at > now() THEN e.claim_token END
FROM open
WHERE e.id = open.id
RETURNING e.mentor_id
