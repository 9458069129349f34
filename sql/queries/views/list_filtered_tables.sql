-- Tables of which row-level security may keep rows from this user, or its own writing out: a night would take a hidden
-- mentor for one who is not there. A policy for everything, as certjob_worker has them, is as good as none. Restrictive
-- ones are certjob's own and keep from it what it never does.
SELECT DISTINCT class.relname::text
FROM unnest(%(tables)s::text[], %(privileges)s::text[]) AS needed (table_name, privilege)
JOIN pg_class AS class ON class.oid = to_regclass('public.' || needed.table_name)
WHERE row_security_active(class.oid)
    AND NOT EXISTS (
        SELECT
        FROM pg_policy AS policy
        WHERE policy.polrelid = class.oid
            AND policy.polpermissive
            AND policy.polcmd IN (
                '*', CASE needed.privilege WHEN 'SELECT' THEN 'r' WHEN 'INSERT' THEN 'a' ELSE 'w' END
            )
            AND (needed.privilege = 'INSERT' OR pg_get_expr(policy.polqual, policy.polrelid) = 'true')
            AND (
                needed.privilege = 'SELECT'
                OR pg_get_expr(coalesce(policy.polwithcheck, policy.polqual), policy.polrelid) = 'true'
            )
            AND EXISTS (
                SELECT
                FROM unnest(policy.polroles) AS member (role)
                WHERE member.role = 0 OR pg_has_role(current_user, member.role, 'USAGE')
            )
    )
ORDER BY class.relname::text
