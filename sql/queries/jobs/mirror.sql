-- name: find_mirror
-- No row if docs/examples/mirror.sql is not installed; otherwise, whether it belongs to the owner of certjob's schema.
SELECT function.proowner = certjob.nspowner
FROM pg_proc AS function
JOIN pg_namespace AS mirror ON mirror.oid = function.pronamespace AND mirror.nspname = 'certjob_mirror'
JOIN pg_namespace AS certjob ON certjob.nspname = 'certjob'
WHERE function.proname = 'sync'

-- name: copy_facts
SELECT profile, member, problem FROM certjob_mirror.sync()

-- name: note_copy
INSERT INTO facts_last_copy AS c (failing_since, problem)
VALUES (CASE WHEN %(problem)s::text IS NOT NULL THEN now() END, %(problem)s)
ON CONFLICT (only_one) DO UPDATE
SET problem = excluded.problem,
    failing_since = CASE WHEN excluded.problem IS NOT NULL THEN coalesce(c.failing_since, now()) END
