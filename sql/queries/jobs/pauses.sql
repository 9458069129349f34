-- name: open_pause
-- No row: the mentor has an open pause with this reason.
INSERT INTO mentor_pauses (mentor_id, reason, actor)
VALUES (%(mentor_id)s, %(because)s, %(by)s)
ON CONFLICT (mentor_id, reason) WHERE lifted_at IS NULL DO NOTHING

-- name: lift_pause
UPDATE mentor_pauses SET lifted_at = now(), lifted_by = %(by)s WHERE id = %(pause_id)s AND lifted_at IS NULL

-- name: list_open_pauses
-- The day as text, because Python cannot represent every one.
SELECT id, reason, actor, paused_at::date::text AS since
FROM mentor_pauses
WHERE mentor_id = %(mentor_id)s AND lifted_at IS NULL
ORDER BY paused_at, reason
LIMIT 200

-- name: want_hidden
-- Requests the hide of a paused mentor before the review. No row: the organisation has no portal, or the mentor was never
-- on it.
UPDATE mentors AS m
SET portal_visible = false
FROM organisations AS o
WHERE m.id = %(mentor_id)s AND o.id = m.organisation_id AND o.portal IS NOT NULL
    AND (m.dynamics_contact_id IS NOT NULL OR m.certified_until > '0001-01-01')
