-- name: read_clock
-- Rows are dated by this clock, not by that of this machine.
SELECT clock_timestamp()

-- name: lock_tables_to_read
-- Test at the start of a command whether its tables can be read. lock_timeout applies only inside a transaction, and a
-- pooler would leak a plain SET. The lock is that of a SELECT, so it works on a standby.
LOCK TABLE organisations, mentors, coordinators, cert_notification_log, portal_sync_events, dynamics_sync_failures,
    coordinator_digests, job_runs IN ACCESS SHARE MODE

-- name: find_locked_table
-- Return the locked table and the process that holds the lock, or otherwise the one that waits for it.
SELECT class.relname, held.pid
FROM pg_locks AS held
JOIN pg_class AS class ON class.oid = held.relation
WHERE held.locktype = 'relation'
    AND held.mode = 'AccessExclusiveLock'
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND class.relkind = 'r'
    AND class.relnamespace = to_regnamespace('certjob')
ORDER BY NOT held.granted, class.relname
LIMIT 1

-- name: is_worker
-- Return whether this user has the role certjob_worker. A superuser, who has every role, does not count.
SELECT EXISTS (
    SELECT
    FROM pg_roles AS worker
    WHERE worker.rolname = 'certjob_worker'
        AND pg_has_role(current_user, worker.oid, 'USAGE')
        AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
)
