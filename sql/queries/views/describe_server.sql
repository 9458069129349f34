-- What must be right before any night: the server, whether it can be written, who we are there, and its clock.
SELECT
    current_setting('server_version_num')::integer AS version_number,
    current_setting('server_version') AS version,
    current_setting('server_encoding') AS encoding,
    pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only') = 'on' AS read_only,
    current_user::text AS user_name,
    clock_timestamp() AS clock_at
