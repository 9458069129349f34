-- name: count_unreached_events
-- What a reopening promised to push and nobody has tried since: the stage ended first, or somebody held the row.
SELECT count(*)
FROM portal_sync_events AS e
JOIN mentors AS m ON m.id = e.mentor_id
JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
WHERE (e.status = 'pending' AND e.attempts = 0 AND e.run_id = %(run_id)s)
    OR (e.status IN ('pending', 'blocked') AND e.run_id IS DISTINCT FROM %(run_id)s AND e.wanted_at < %(started_at)s)
