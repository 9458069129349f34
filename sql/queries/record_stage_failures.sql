-- The stage ended early: no open hide waits unseen. In mentor order, as everybody who locks several rows.
INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, attempts, error)
SELECT e.mentor_id, e.id, e.visible, 'stage', 0, %(error)s
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
WHERE e.status IN ('pending', 'blocked') AND NOT e.visible
ORDER BY e.mentor_id
ON CONFLICT (mentor_id) WHERE resolved_at IS NULL DO NOTHING
