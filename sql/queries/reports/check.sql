-- name: describe_server
SELECT
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_user::text AS user_name,
    current_setting('synchronous_commit') AS synchronous_commit

-- name: read_runs_in_the_future
-- The database clock was wrong at the end of these runs. It may be right now.
SELECT count(*), max(finished_at) FROM job_runs WHERE finished_at > clock_timestamp() + interval '1 minute'

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
