-- Which table of certjob's nobody else can read now, and who keeps it or waits to: whoever has it, first.
SELECT class.relname, held.pid
FROM pg_locks AS held
JOIN pg_class AS class ON class.oid = held.relation
WHERE held.locktype = 'relation'
    AND held.mode = 'AccessExclusiveLock'
    AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND class.relkind = 'r'
    AND class.relnamespace = 'public'::regnamespace
ORDER BY NOT held.granted, class.relname
LIMIT 1
