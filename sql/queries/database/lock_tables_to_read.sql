-- The tables that a command reads outside any transaction, where no lock_timeout holds (a pooler would leak a plain SET):
-- asked for at its beginning, let go of at once. The same lock as a SELECT's, so it works on a standby, too.
LOCK TABLE organisations, mentors, coordinators, cert_notification_log, portal_sync_events, dynamics_sync_failures,
    coordinator_digests, job_runs IN ACCESS SHARE MODE
