-- name: update_certificates
-- This transaction has locked the rows already. A certificate of a mentor who stays due remains unseen. A null keeps the
-- status.
UPDATE certificates AS c
SET status = coalesce(n.status, c.status), unseen_since = CASE WHEN n.stays_due THEN c.unseen_since END
FROM unnest(%(ids)b::uuid[], %(statuses)b::text[], %(stays_due)b::boolean[]) AS n (id, status, stays_due)
WHERE c.id = n.id

-- name: insert_transitions
-- The audit, in the transaction of the change.
INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of, run_id)
SELECT n.certificate_id, n.mentor_id, n.from_status, n.to_status, %(today)s, %(run_id)s
FROM unnest(%(certificate_ids)b::uuid[], %(mentor_ids)b::uuid[], %(from_statuses)b::text[], %(to_statuses)b::text[])
    AS n (certificate_id, mentor_id, from_status, to_status)

-- name: open_pauses
-- certjob's own pause. A unique index prevents a second open one.
INSERT INTO mentor_pauses (mentor_id, reason, actor, lapsed_kinds)
SELECT n.mentor_id, 'certification_expired', 'certjob',
    ARRAY(SELECT kind FROM jsonb_array_elements_text(n.kinds::jsonb) AS kind)
FROM unnest(%(mentor_ids)b::uuid[], %(lapsed_kinds)b::text[]) AS n (mentor_id, kinds)

-- name: update_lapsed_kinds
UPDATE mentor_pauses AS p
SET lapsed_kinds = ARRAY(SELECT kind FROM jsonb_array_elements_text(n.kinds::jsonb) AS kind)
FROM unnest(%(ids)b::uuid[], %(lapsed_kinds)b::text[]) AS n (id, kinds)
WHERE p.id = n.id

-- name: lift_pauses
-- Only certjob's own pauses.
UPDATE mentor_pauses
SET lifted_at = now(), lifted_by = 'certjob'
WHERE id = ANY (%(ids)b::uuid[]) AND lifted_at IS NULL AND actor = 'certjob'

-- name: update_mentors
-- The last statement of a review: the mentor stays due until then. With held reminders, the mentor also keeps the stored
-- values, with which the next review compares.
UPDATE mentors AS m
SET certified_until = CASE WHEN n.stays_due THEN m.certified_until ELSE n.certified_until END,
    reviewed_contact_id = CASE
        WHEN n.stays_due THEN m.reviewed_contact_id
        ELSE coalesce(m.dynamics_contact_id, m.reviewed_contact_id)
    END,
    review_on = CASE WHEN n.stays_due THEN m.review_on ELSE coalesce(n.review_on, 'infinity') END,
    portal_visible = CASE
        WHEN n.withdrawn THEN NULL  -- unknown: a new portal gets a push in any case
        WHEN n.push THEN n.visible
        ELSE m.portal_visible
    END
FROM unnest(
    %(ids)b::uuid[], %(certified_until)b::date[], %(review_dates)b::date[], %(stays_due)b::boolean[],
    %(push)b::boolean[], %(visible)b::boolean[], %(withdrawn)b::boolean[]
) AS n (id, certified_until, review_on, stays_due, push, visible, withdrawn)
WHERE m.id = n.id
