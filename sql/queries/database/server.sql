-- name: read_clock
-- The database's own clock, by which rows are dated: to tell those of before from those that come meanwhile.
SELECT clock_timestamp()

-- name: lock_tables_to_read
-- The tables that a command reads outside any transaction, where no lock_timeout holds (a pooler would leak a plain SET):
-- asked for at its beginning, let go of at once. The same lock as a SELECT's, so it works on a standby, too.
LOCK TABLE organisations, mentors, coordinators, cert_notification_log, portal_sync_events, dynamics_sync_failures,
    coordinator_digests, job_runs IN ACCESS SHARE MODE

-- name: find_locked_table
-- Which table of certjob's nobody else can read now, and who keeps it or waits to: whoever has it, first.
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
-- Whether this user is certjob_worker, by grant or itself; not a superuser, who is everybody.
SELECT EXISTS (
    SELECT
    FROM pg_roles AS worker
    WHERE worker.rolname = 'certjob_worker'
        AND pg_has_role(current_user, worker.oid, 'USAGE')
        AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
)
