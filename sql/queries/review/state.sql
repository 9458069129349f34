-- name: change_statuses
-- With the audit. This transaction has locked the rows already.
WITH changed AS MATERIALIZED (
    SELECT n.certificate_id, n.mentor_id, n.from_status, n.to_status
    FROM unnest(%(certificate_ids)b::uuid[], %(mentor_ids)b::uuid[], %(from_statuses)b::text[], %(to_statuses)b::text[])
        AS n (certificate_id, mentor_id, from_status, to_status)
), updated AS (
    UPDATE certificates AS c SET status = n.to_status FROM changed AS n WHERE c.id = n.certificate_id
)
INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of, run_id)
SELECT n.certificate_id, n.mentor_id, n.from_status, n.to_status, %(today)s, %(run_id)s
FROM changed AS n

-- name: open_pauses
-- certjob's own pause. A unique index prevents a second open one.
INSERT INTO mentor_pauses (mentor_id, reason, actor, lapsed_kinds)
SELECT n.mentor_id, 'certification_expired', 'certjob', n.kinds::text[]
FROM unnest(%(mentor_ids)b::uuid[], %(lapsed_kinds)b::text[]) AS n (mentor_id, kinds)

-- name: update_lapsed_kinds
UPDATE mentor_pauses AS p
SET lapsed_kinds = n.kinds::text[]
FROM unnest(%(ids)b::uuid[], %(lapsed_kinds)b::text[]) AS n (id, kinds)
WHERE p.id = n.id

-- name: lift_pauses
-- Only certjob's own pauses.
UPDATE mentor_pauses
SET lifted_at = now(), lifted_by = 'certjob'
WHERE id = ANY (%(ids)b::uuid[]) AND lifted_at IS NULL AND actor = 'certjob'

-- name: update_mentors
-- The last statement of a review: the mentor stays due until then.
WITH forgotten AS (
    DELETE FROM still_due WHERE mentor_id = ANY (%(ids)b::uuid[])
)
UPDATE mentors AS m
SET certified_until = n.certified_until,
    decided_visible = n.visible,
    without_certificate = n.without_certificate,
    seen_certificates = coalesce(n.seen::jsonb, m.seen_certificates),
    reviewed_contact_id = coalesce(m.dynamics_contact_id, m.reviewed_contact_id),
    review_on = coalesce(n.review_on, 'infinity'),
    portal_visible = CASE
        WHEN n.withdrawn THEN NULL  -- unknown: a new portal gets a push in any case
        WHEN n.push THEN n.visible
        ELSE m.portal_visible
    END
FROM unnest(
    %(ids)b::uuid[], %(certified_until)b::date[], %(seen)b::text[], %(review_dates)b::date[], %(push)b::boolean[],
    %(visible)b::boolean[], %(without_certificate)b::boolean[], %(withdrawn)b::boolean[]
) AS n (id, certified_until, seen, review_on, push, visible, without_certificate, withdrawn)
WHERE m.id = n.id

-- name: store_held_mentors
-- In the transaction that has locked the mentors. A repeated hold keeps its "since"; another reason is news. xmax is 0 in
-- an inserted row.
INSERT INTO still_due AS s (mentor_id, what, reason, as_of, after_gap, certified_until)
SELECT n.mentor_id, 'held', n.reason, %(today)s, n.after_gap, n.certified_until
FROM unnest(%(ids)b::uuid[], %(reasons)b::text[], %(after_gap)b::boolean[], %(certified_until)b::date[])
    AS n (mentor_id, reason, after_gap, certified_until)
ORDER BY n.mentor_id
ON CONFLICT (mentor_id) DO UPDATE
SET what = excluded.what, reason = excluded.reason, as_of = excluded.as_of,
    after_gap = s.after_gap OR excluded.after_gap, certified_until = excluded.certified_until,
    since = CASE WHEN s.reason = excluded.reason THEN s.since ELSE excluded.since END
RETURNING xmax = 0 AS is_new

-- name: store_not_reviewed
-- Mentors who are still due at the end of a run. A held one stays held if another session has locked it now.
INSERT INTO still_due AS s (mentor_id, what, reason, as_of)
SELECT n.mentor_id, 'not_reviewed', n.reason, %(today)s
FROM unnest(%(ids)b::uuid[], %(reasons)b::text[]) AS n (mentor_id, reason)
ORDER BY n.mentor_id
ON CONFLICT (mentor_id) DO UPDATE
SET what = excluded.what, reason = excluded.reason, as_of = excluded.as_of
WHERE s.what <> 'held' OR s.mentor_id = ANY (%(broken)b::uuid[])
