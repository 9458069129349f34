-- name: create_worker_role
-- Roles belong to the whole server, so a concurrent migration of another database may create this one first.
DO $$
BEGIN
    IF to_regrole('certjob_worker') IS NULL THEN
        CREATE ROLE certjob_worker NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN
        NULL;
END
$$

-- name: create_ledger
-- An administrator may have created the schemas for a user who may not create them.
DO $$
BEGIN
    IF to_regnamespace('certjob') IS NULL THEN
        CREATE SCHEMA certjob;
    END IF;
    IF to_regnamespace('certjob_private') IS NULL THEN
        CREATE SCHEMA certjob_private;
    END IF;
    IF to_regclass('certjob.migrations') IS NULL THEN
        CREATE TABLE certjob.migrations (
            version    integer PRIMARY KEY,
            name       text NOT NULL,
            sha256     text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now()
        );
        ALTER TABLE certjob.migrations ENABLE ROW LEVEL SECURITY;
    END IF;
END
$$

-- name: find_ledger
-- Return whether the ledger exists, and whether row-level security filters its rows for this user.
SELECT ledger IS NOT NULL, row_security_active(ledger) FROM to_regclass('certjob.migrations') AS ledger

-- name: list_applied_migrations
SELECT version, name, sha256, applied_at FROM certjob.migrations

-- name: insert_migration
INSERT INTO certjob.migrations (version, name, sha256) VALUES (%(version)s, %(name)s, %(sha256)s)

-- name: set_up_rights
SELECT certjob_private.set_up_rights()
