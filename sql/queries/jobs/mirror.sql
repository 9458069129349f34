-- name: find_mirror
-- No row if docs/examples/mirror.sql is not installed; otherwise, whether it belongs to the owner of certjob's schema.
SELECT function.proowner = certjob.nspowner
FROM pg_proc AS function
JOIN pg_namespace AS mirror ON mirror.oid = function.pronamespace AND mirror.nspname = 'certjob_mirror'
JOIN pg_namespace AS certjob ON certjob.nspname = 'certjob'
WHERE function.proname = 'sync'

-- name: copy_facts
SELECT profile, member, problem FROM certjob_mirror.sync()
