-- What a reopening promised to push and nobody has tried since: the stage ended first.
SELECT count(*) FROM portal_sync_events WHERE status = 'pending' AND attempts = 0 AND run_id = %(run_id)s
