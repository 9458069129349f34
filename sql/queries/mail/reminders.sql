-- name: find_new_reminders
-- The reminders that adopt_reminders and queue_reminders would queue, for the plan and the guards, which do not write.
SELECT n.mentor_id, n.threshold_days, n.cert_id
FROM unnest(%(mentor_ids)b::uuid[], %(thresholds)b::int[], %(cert_ids)b::uuid[], %(expiries)b::date[])
    AS n (mentor_id, threshold_days, cert_id, expires_on)
LEFT JOIN LATERAL (
    SELECT o.id, o.expires_on, o.status
    FROM cert_notification_log AS o
    WHERE o.mentor_id = n.mentor_id
        AND o.threshold_days = n.threshold_days
        AND (
            o.cert_id = n.cert_id
            OR (
                (
                    o.expires_on = n.expires_on
                    OR o.history @> jsonb_build_array(jsonb_build_object('expires_on', n.expires_on))
                )
                AND (
                    o.kind = (SELECT c.kind FROM certificates AS c WHERE c.id = n.cert_id)
                    OR NOT EXISTS (
                        SELECT FROM certificates AS c WHERE c.mentor_id = o.mentor_id AND c.kind IS NOT DISTINCT FROM o.kind
                    )
                )
            )
        )
    ORDER BY o.cert_id <> n.cert_id, o.id
    LIMIT 1
) AS l ON true
WHERE (l.id IS NULL OR l.expires_on <> n.expires_on OR l.status IN ('cancelled', 'superseded'))
    AND NOT EXISTS (
        SELECT FROM certjob_private.same_mails(n.mentor_id, n.cert_id, n.expires_on, n.threshold_days)
    )

-- name: find_without_address
-- Mentors without an address; as in read_recipient.
SELECT m.id FROM mentors AS m WHERE m.id = ANY (%(ids)b::uuid[]) AND nullif(btrim(m.email), '') IS NULL

-- name: adopt_reminders
-- A certificate that was deleted and entered again has another id, but the mentor has had the mail. So its row is moved to
-- the new certificate before queue_reminders runs. Otherwise an app that writes all certificates again every day would send
-- every reminder every day. A row moves to a certificate of its kind with the same last day. If the mentor has no certificate
-- of that kind any more, it moves to one of another kind, because a kind may be corrected. Last days in the history count. A
-- claimed row moves, too, because a second row would send the mail twice. Its claim settles it by id.
WITH known AS MATERIALIZED (
    -- Fast, because nearly no mentor has another row with this threshold and date.
    SELECT n.mentor_id, n.threshold_days, n.cert_id, n.expires_on
    FROM unnest(%(mentor_ids)b::uuid[], %(thresholds)b::int[], %(cert_ids)b::uuid[], %(expiries)b::date[])
        AS n (mentor_id, threshold_days, cert_id, expires_on)
    WHERE EXISTS (
        SELECT
        FROM cert_notification_log AS l
        WHERE l.mentor_id = n.mentor_id
            AND l.threshold_days = n.threshold_days
            AND l.cert_id <> n.cert_id
            AND (
                l.expires_on = n.expires_on
                OR l.history @> jsonb_build_array(jsonb_build_object('expires_on', n.expires_on))
            )
        OFFSET 0
    )
), due AS MATERIALIZED (
    SELECT k.mentor_id, k.threshold_days, k.cert_id, k.expires_on, c.kind,
        row_number() OVER (PARTITION BY k.mentor_id, k.threshold_days, k.expires_on ORDER BY k.cert_id) AS number
    FROM known AS k
    JOIN certificates AS c ON c.id = k.cert_id
    WHERE NOT EXISTS (
        SELECT
        FROM cert_notification_log AS own
        WHERE own.mentor_id = k.mentor_id AND own.threshold_days = k.threshold_days AND own.cert_id = k.cert_id
    )
), held AS MATERIALIZED (
    SELECT l.id, d.mentor_id, d.threshold_days, d.expires_on, l.kind, l.was_sent, gone.is_kind AS is_kind_gone,
        row_number() OVER (
            PARTITION BY d.mentor_id, d.threshold_days, d.expires_on, gone.is_kind ORDER BY l.was_sent DESC, l.id
        ) AS number
    FROM (SELECT DISTINCT d.mentor_id, d.threshold_days, d.expires_on FROM due AS d) AS d
    CROSS JOIN LATERAL (
        SELECT o.id, o.kind, certjob_private.has_mailed(o, d.expires_on, d.threshold_days) AS was_sent
        FROM cert_notification_log AS o
        WHERE o.mentor_id = d.mentor_id
            AND o.threshold_days = d.threshold_days
            AND (
                o.expires_on = d.expires_on
                OR o.history @> jsonb_build_array(jsonb_build_object('expires_on', d.expires_on))
            )
    ) AS l
    CROSS JOIN LATERAL (
        SELECT NOT EXISTS (
            SELECT FROM certificates AS c WHERE c.mentor_id = d.mentor_id AND c.kind IS NOT DISTINCT FROM l.kind
        ) AS is_kind
    ) AS gone
), pair AS (
    SELECT DISTINCT ON (d.cert_id, d.threshold_days) h.id, d.cert_id, d.kind
    FROM due AS d
    JOIN held AS h
        ON h.mentor_id = d.mentor_id
        AND h.threshold_days = d.threshold_days
        AND h.expires_on = d.expires_on
        AND (h.kind = d.kind OR (h.is_kind_gone AND h.number = d.number))
    ORDER BY d.cert_id, d.threshold_days, h.was_sent DESC, h.is_kind_gone, h.id
)
UPDATE cert_notification_log AS l
SET cert_id = pair.cert_id, kind = pair.kind
FROM pair
WHERE l.id = pair.id

-- name: queue_reminders
-- One row per mentor, threshold and certificate.
--   same last day           no change, but a cancelled or superseded reminder is queued again
--   new last day            queued again, and the earlier values go to the history
--   same_mails has one      no change, and no row
-- A held one waits for a permission, and so does a more urgent one about the same last day. If a mail about the same last day
-- may have been sent, the new one says that it may be a repeat. Rows are locked in the order of mentors, as in all statements
-- that lock several, which prevents deadlocks. A more urgent reminder supersedes older unsent ones about the same certificate.
WITH queued AS (
    INSERT INTO cert_notification_log AS l (mentor_id, threshold_days, cert_id, kind, expires_on, status, run_id)
    SELECT n.mentor_id, n.threshold_days, n.cert_id, (SELECT c.kind FROM certificates AS c WHERE c.id = n.cert_id),
        n.expires_on, CASE
            WHEN n.held OR EXISTS (
                SELECT
                FROM cert_notification_log AS h
                WHERE h.mentor_id = n.mentor_id AND h.cert_id = n.cert_id AND h.expires_on = n.expires_on AND h.status = 'held'
            ) THEN 'held'
            ELSE 'pending'
        END, %(run_id)s
    FROM unnest(
        %(mentor_ids)b::uuid[], %(thresholds)b::int[], %(cert_ids)b::uuid[], %(expiries)b::date[], %(held)b::boolean[]
    ) AS n (mentor_id, threshold_days, cert_id, expires_on, held)
    WHERE NOT EXISTS (
            SELECT FROM certjob_private.same_mails(n.mentor_id, n.cert_id, n.expires_on, n.threshold_days)
        )
    ORDER BY n.mentor_id, n.threshold_days, n.cert_id
    ON CONFLICT (mentor_id, threshold_days, cert_id) DO UPDATE
    SET expires_on = excluded.expires_on,
        kind = excluded.kind,
        status = excluded.status,
        attempts = 0,
        next_attempt_at = now(),
        claim_token = NULL,
        queued_at = now(),
        sent_at = NULL,
        last_error = NULL,
        failure_code = NULL,
        run_id = excluded.run_id,
        history = l.history || jsonb_build_array(jsonb_build_object(
            'expires_on', l.expires_on, 'status', l.status, 'queued_at', l.queued_at, 'sent_at', l.sent_at,
            'attempted_on', l.attempted_on,
            'attempts', l.attempts, 'maybe_sent', l.maybe_sent OR l.claim_token IS NOT NULL, 'last_error', l.last_error
        )),
        maybe_sent = (l.expires_on = excluded.expires_on AND (l.maybe_sent OR l.claim_token IS NOT NULL))
            OR l.history @> jsonb_build_array(jsonb_build_object('expires_on', excluded.expires_on, 'maybe_sent', true))
    WHERE l.expires_on <> excluded.expires_on OR l.status IN ('cancelled', 'superseded')
    RETURNING l.mentor_id, l.threshold_days, l.cert_id, l.status
), superseded AS (
    -- An array, because a join would compare each new reminder with all unsent ones. A claimed one is checked under its claim.
    UPDATE cert_notification_log AS l
    SET status = 'superseded', claim_token = NULL, maybe_sent = l.maybe_sent OR l.claim_token IS NOT NULL
    WHERE l.id = ANY (ARRAY(
            SELECT older.id
            FROM queued AS q
            CROSS JOIN LATERAL (
                SELECT o.id
                FROM cert_notification_log AS o
                WHERE o.mentor_id = q.mentor_id AND o.threshold_days > q.threshold_days AND o.cert_id = q.cert_id
                OFFSET 0
            ) AS older
        ))
        AND l.status IN ('pending', 'failed', 'held')
        AND NOT (l.claim_token IS NOT NULL AND l.next_attempt_at > now())
)
SELECT count(*) FILTER (WHERE q.status = 'pending') AS pending, count(*) FILTER (WHERE q.status = 'held') AS held
FROM queued AS q

-- name: read_stopped_reminders
SELECT id, mentor_id, cert_id, threshold_days, expires_on
FROM cert_notification_log
WHERE mentor_id = ANY (%(mentor_ids)b::uuid[]) AND status IN ('failed', 'held')
ORDER BY mentor_id, id

-- name: cancel_stopped_reminders
UPDATE cert_notification_log AS l
SET status = 'cancelled', last_error = n.reason, failure_code = NULL
FROM unnest(%(ids)s::bigint[], %(reasons)s::text[]) AS n (id, reason)
WHERE l.id = n.id AND l.status IN ('failed', 'held')

-- name: find_held_reminders
SELECT DISTINCT l.mentor_id
FROM cert_notification_log AS l
JOIN mentors AS m ON m.id = l.mentor_id
WHERE l.status = 'held' AND m.organisation_id = %(organisation_id)s

-- name: release_reminders
-- None if they are of more mentors than a person permits. The order prevents deadlocks.
WITH held AS MATERIALIZED (
    SELECT l.id, l.mentor_id
    FROM cert_notification_log AS l
    JOIN mentors AS m ON m.id = l.mentor_id
    JOIN organisations AS o ON o.id = m.organisation_id
    WHERE l.status = 'held' AND o.slug = %(slug)s
    ORDER BY l.mentor_id
    FOR NO KEY UPDATE OF l
)
UPDATE cert_notification_log AS l
SET status = 'pending', next_attempt_at = now(), queued_at = now()
FROM held
WHERE l.id = held.id AND (SELECT count(DISTINCT h.mentor_id) FROM held AS h) <= %(allow)s

-- name: reopen_reminders
-- Undelivered reminders of all, or of one mentor, whose held ones are permitted as well.
UPDATE cert_notification_log
SET status = 'pending', attempts = 0, next_attempt_at = now(),
    queued_at = CASE status WHEN 'pending' THEN queued_at ELSE now() END
WHERE id IN (
    SELECT id
    FROM cert_notification_log
    WHERE (
            status = 'failed'
            OR (status = 'held' AND %(mentor_id)s::uuid IS NOT NULL)
            OR (status = 'pending' AND next_attempt_at > now() AND claim_token IS NULL)
        )
        AND (%(mentor_id)s::uuid IS NULL OR mentor_id = %(mentor_id)s)
    ORDER BY mentor_id, id
    FOR NO KEY UPDATE
)
