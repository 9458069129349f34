-- Tables of which row-level security may keep rows from this user: a night would take a hidden mentor for one who is not
-- there. A policy that lets the user read everything is as good as none.
SELECT class.relname::text
FROM pg_class AS class
JOIN unnest(%(tables)s::text[]) AS needed (table_name) ON class.oid = to_regclass('public.' || needed.table_name)
WHERE row_security_active(class.oid)
    AND NOT EXISTS (
        SELECT
        FROM pg_policy AS policy
        WHERE policy.polrelid = class.oid
            AND policy.polpermissive
            AND policy.polcmd IN ('*', 'r')
            AND pg_get_expr(policy.polqual, policy.polrelid) = 'true'
            AND EXISTS (
                SELECT
                FROM unnest(policy.polroles) AS member (role)
                WHERE member.role = 0 OR pg_has_role(current_user, member.role, 'USAGE')
            )
    )
ORDER BY class.relname
