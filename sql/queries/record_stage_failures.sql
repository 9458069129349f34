-- The stage ended early: no open hide waits unseen. An event that somebody holds is in work just now and gets its own
-- outcome; without its lock a row made here could outlive the delivery that should have resolved it.
INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, attempts, error)
SELECT e.mentor_id, e.id, e.visible, 'stage', 0, %(error)s
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
WHERE e.status IN ('pending', 'blocked')
    AND NOT e.visible
    AND NOT EXISTS (SELECT FROM dynamics_sync_failures AS f WHERE f.mentor_id = e.mentor_id AND f.resolved_at IS NULL)
ORDER BY e.mentor_id
FOR NO KEY UPDATE OF e SKIP LOCKED
FOR KEY SHARE OF m SKIP LOCKED
ON CONFLICT (mentor_id) WHERE resolved_at IS NULL DO NOTHING
