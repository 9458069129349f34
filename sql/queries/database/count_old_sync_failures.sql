-- What delete_old_sync_failures would delete.
SELECT count(*)
FROM dynamics_sync_failures AS f
WHERE greatest(f.resolved_at, f.last_failed_at) < %(before)s AND f.resolved_at IS NOT NULL
