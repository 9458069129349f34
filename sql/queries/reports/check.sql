-- name: describe_server
SELECT
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_user::text AS user_name,
    current_setting('synchronous_commit') AS synchronous_commit

-- name: list_missing_rights
-- The needed rights that this user lacks. A right on some columns is enough.
SELECT needed.privilege || ' on ' || needed.table_name
FROM unnest(%(tables)s::text[], %(privileges)s::text[]) WITH ORDINALITY AS needed (table_name, privilege, position)
WHERE CASE needed.privilege
    WHEN 'EXECUTE' THEN NOT EXISTS (
        SELECT
        FROM pg_proc AS function
        WHERE function.proname = needed.table_name AND has_function_privilege(function.oid, 'EXECUTE')
            AND function.pronamespace IN ('certjob'::regnamespace, 'certjob_private'::regnamespace)
    )
    ELSE NOT has_any_column_privilege('certjob.' || needed.table_name, needed.privilege)
END
ORDER BY needed.position

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
FROM unnest(%(tables)s::text[], %(privileges)s::text[]) AS needed (table_name, privilege)
JOIN pg_class AS class ON class.relname = needed.table_name AND class.relnamespace = 'certjob'::regnamespace
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

-- name: list_excess_rights
-- The rights of Supabase's roles, or of everyone, that set_up_rights does not grant. With such a right a coordinator
-- could change a derived column, such as review_on. The list repeats the grants to the role authenticated.
WITH granted (role, what, object, columns) AS (
    SELECT acl.grantee, acl.privilege_type, class.relname::text, NULL::text
    FROM pg_class AS class
    CROSS JOIN LATERAL aclexplode(class.relacl) AS acl
    WHERE class.relnamespace = 'certjob'::regnamespace
    UNION ALL
    SELECT acl.grantee, acl.privilege_type, class.relname::text, attribute.attname::text
    FROM pg_class AS class
    JOIN pg_attribute AS attribute ON attribute.attrelid = class.oid
    CROSS JOIN LATERAL aclexplode(attribute.attacl) AS acl
    WHERE class.relnamespace = 'certjob'::regnamespace
    UNION ALL
    SELECT acl.grantee, acl.privilege_type, function.proname::text, NULL
    FROM pg_proc AS function
    CROSS JOIN LATERAL aclexplode(coalesce(function.proacl, acldefault('f', function.proowner))) AS acl
    WHERE function.pronamespace IN ('certjob'::regnamespace, 'certjob_private'::regnamespace)
    UNION ALL
    SELECT acl.grantee, acl.privilege_type, 'the schema ' || schema.nspname, NULL
    FROM pg_namespace AS schema
    CROSS JOIN LATERAL aclexplode(schema.nspacl) AS acl
    WHERE schema.nspname IN ('certjob', 'certjob_private')
), allowed (what, objects, columns) AS (
    VALUES
        ('USAGE', '{the schema certjob}'::text[], '{}'::text[]),
        ('SELECT', '{organisations,coordinators,mentors,certificates,mentor_pauses,certificate_transitions}', '{}'),
        ('SELECT', '{cert_notification_log,portal_sync_events,dynamics_sync_failures,held_reviews}', '{}'),
        ('SELECT', '{review_problems,alerts,all_alerts,open_pushes}', '{}'),
        ('SELECT', '{acknowledgements}', '{alert_id,cause,number,until,ended_at}'),
        ('UPDATE', '{mentors}', '{full_name,email,locale,dynamics_contact_id,left_at}'),
        ('INSERT', '{certificates}', '{id,mentor_id,kind,issued_on,expires_on,revoked_at}'),
        ('UPDATE', '{certificates}', '{mentor_id,kind,issued_on,expires_on,revoked_at}'),
        ('INSERT', '{mentor_pauses}', '{id,mentor_id,reason,actor,paused_at}'),
        ('UPDATE', '{mentor_pauses}', '{lifted_at,lifted_by}'),
        ('EXECUTE', '{request_portal_resync,coordinator_organisation_id,user_id,contact_is_taken}', '{}')
)
SELECT DISTINCT coalesce(role.rolname::text, 'everyone') || ': ' || granted.what || ' on ' || granted.object
FROM granted
LEFT JOIN pg_roles AS role ON role.oid = granted.role
WHERE (granted.role = 0 OR role.rolname IN ('anon', 'authenticated'))
    AND NOT EXISTS (
        SELECT FROM allowed
        WHERE role.rolname = 'authenticated' AND allowed.what = granted.what
            AND granted.object = ANY (allowed.objects)
            AND (allowed.columns = '{}' OR granted.columns = ANY (allowed.columns))
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
