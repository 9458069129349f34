-- name: describe_server
SELECT
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_user::text AS user_name,
    current_setting('synchronous_commit') AS synchronous_commit

-- name: may_read_rights
SELECT has_table_privilege('certjob.rights', 'SELECT')

-- name: list_missing_rights
-- The rights of certjob_worker that this user lacks. A right on some columns is enough.
SELECT n.privilege || ' on ' || coalesce(class.relname::text, function.proname, 'the schema ' || n.object)
FROM rights AS n
LEFT JOIN pg_class AS class
    ON class.relkind IN ('r', 'v')
    AND CASE n.type
        WHEN 'TABLE' THEN class.relnamespace::regnamespace || '.' || class.relname
        WHEN 'ALL TABLES IN SCHEMA' THEN class.relnamespace::regnamespace::text
    END = n.object
LEFT JOIN pg_proc AS function
    ON n.type = 'FUNCTION'
    AND function.pronamespace::regnamespace || '.' || function.proname = split_part(n.object, '(', 1)
WHERE n.role = 'certjob_worker'
    AND CASE
        WHEN n.type = 'SCHEMA' THEN NOT has_schema_privilege(n.object, n.privilege)
        WHEN class.oid IS NULL THEN NOT has_function_privilege(function.oid, n.privilege)
        WHEN n.privilege = 'DELETE' THEN NOT has_table_privilege(class.oid, n.privilege)
        ELSE NOT has_any_column_privilege(class.oid, n.privilege)
    END
ORDER BY class.relname, function.proname, n.privilege

-- name: list_last_deliveries
SELECT started_at
FROM job_runs
WHERE command IN ('run', 'deliver') AND started_at > now() - interval '2 days'

-- name: read_runs_in_the_future
-- The database clock was wrong at the end of these runs. It may be right now.
SELECT count(*), max(finished_at) FROM job_runs WHERE finished_at > clock_timestamp() + interval '1 minute'

-- name: list_filtered_tables
-- The tables in which row-level security may hide rows from this user, or reject its rows. A run would not review a
-- hidden mentor. A policy that permits everything, such as those of certjob_worker, hides no row. Restrictive policies
-- are certjob's own and do not concern a run.
SELECT DISTINCT class.relname::text
FROM rights AS needed
JOIN pg_class AS class
    ON CASE needed.type
        WHEN 'TABLE' THEN class.relnamespace::regnamespace || '.' || class.relname
        WHEN 'ALL TABLES IN SCHEMA' THEN class.relnamespace::regnamespace::text
    END = needed.object
WHERE needed.role = 'certjob_worker'
    AND needed.privilege IN ('SELECT', 'INSERT', 'UPDATE')
    AND row_security_active(class.oid)
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

-- name: list_excess_rights
-- The rights of Supabase's roles, or of everyone, that set_up_rights does not grant. With such a right a coordinator
-- could change a derived column, such as review_on.
WITH granted (role, privilege, type, schema, name, column_name) AS (
    SELECT acl.grantee, acl.privilege_type, 'TABLE', class.relnamespace, class.relname::text, NULL::text
    FROM pg_class AS class
    CROSS JOIN LATERAL aclexplode(class.relacl) AS acl
    UNION ALL
    SELECT acl.grantee, acl.privilege_type, 'TABLE', class.relnamespace, class.relname::text, attribute.attname::text
    FROM pg_class AS class
    JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid
    CROSS JOIN LATERAL aclexplode(attribute.attacl) AS acl
    UNION ALL
    SELECT acl.grantee, acl.privilege_type, 'FUNCTION', function.pronamespace, function.proname::text, NULL
    FROM pg_proc AS function
    CROSS JOIN LATERAL aclexplode(coalesce(function.proacl, acldefault('f', function.proowner))) AS acl
    UNION ALL
    SELECT acl.grantee, acl.privilege_type, 'SCHEMA', schema.oid, NULL, NULL
    FROM pg_namespace AS schema
    CROSS JOIN LATERAL aclexplode(schema.nspacl) AS acl
)
SELECT DISTINCT coalesce(role.rolname::text, 'everyone') || ': ' || granted.privilege || ' on '
    || coalesce(granted.name, 'the schema ' || granted.schema::regnamespace)
FROM granted
LEFT JOIN pg_roles AS role ON role.oid = granted.role
WHERE granted.schema IN ('certjob'::regnamespace, 'certjob_private'::regnamespace)
    AND (granted.role = 0 OR role.rolname IN ('anon', 'authenticated'))
    AND NOT EXISTS (
        SELECT
        FROM rights AS allowed
        WHERE allowed.role = role.rolname
            AND allowed.privilege = granted.privilege
            AND allowed.type = granted.type
            AND split_part(allowed.object, '(', 1) = concat_ws('.', granted.schema::regnamespace, granted.name)
            AND (allowed.columns IS NULL OR granted.column_name = ANY (string_to_array(allowed.columns, ', ')))
    )
ORDER BY 1

-- name: list_setup_gaps
SELECT
    o.slug,
    o.portal IS NOT NULL AS has_portal,
    EXISTS (SELECT FROM coordinators AS c WHERE c.organisation_id = o.id) AS has_coordinator,
    coalesce(o.contact_email, '') <> '' OR coalesce(o.contact_phone, '') <> '' AS has_contact,
    (
        SELECT count(*)
        FROM mentors AS m
        WHERE m.organisation_id = o.id AND m.left_at IS NULL AND m.dynamics_contact_id IS NULL
    ) AS without_contact_id
FROM organisations AS o
ORDER BY o.slug
