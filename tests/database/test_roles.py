"""The role certjob_worker: every command works with it, other statements do not; and how roles are created."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from certjob import database
from certjob.database import migrations
from tests.database import supabase
from tests.database.everything import assert_every_command_works
from tests.database.supabase import DENIED, furnish
from tests.support.facts import Facts

SETTINGS = {
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "timezone": "Pacific/Kiritimati",
    "row_security": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "client_encoding": "LATIN1",
}
"""Settings of a database that change the meaning of statements or results."""


@pytest.fixture
def login_url(database_url: str) -> Iterator[str]:
    """The URL of a login with the role certjob_worker, as in docs/database-roles.md."""
    name = f"certjob_cron_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        here = admin.info.dbname
        admin.execute(
            f"CREATE ROLE {name} LOGIN IN ROLE certjob_worker; REVOKE CONNECT ON DATABASE {here} FROM PUBLIC;"
            f"GRANT CONNECT ON DATABASE {here} TO {name}".encode()
        )
        yield psycopg.conninfo.make_conninfo(database_url, user=name)
        admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def test_every_command_works_as_worker_with_unusual_settings(
    bare_environment: dict[str, str], login_url: str, facts: Facts, tmp_path: Path
) -> None:
    """The commands insert, change and delete rows in every table."""
    for name, value in SETTINGS.items():
        facts.connection.execute(f"ALTER DATABASE {facts.connection.info.dbname} SET {name} = '{value}'".encode())

    assert_every_command_works(login_url, facts=facts, environment=bare_environment, folder=tmp_path)


def test_worker_cannot_do_more_than_certjob_does(login_url: str, facts: Facts) -> None:
    """This limits a stolen login. The role itself cannot log in."""
    rights = "SELECT rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = %s"
    assert facts.rows(rights, "certjob_worker") == [(False,) * 5]
    furnish(facts.connection, "hlf", api=facts.connection)
    facts.connection.execute("CREATE TABLE diary (secret text)")
    with database.connect(login_url) as worker:
        for statement in (
            "ALTER TABLE mentors DISABLE TRIGGER mentor_updated",
            "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE actor <> 'certjob'",
            "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'sick', 'anna' FROM mentors",
            "SELECT certjob_private.set_up_rights()",
            "SELECT secret FROM diary",
        ):
            with pytest.raises(DENIED):
                worker.execute(statement.encode())


def test_worker_deletes_only_finished_rows(login_url: str, facts: Facts) -> None:
    """A mistake in retention cannot delete open rows."""
    furnish(facts.connection, "hlf", api=facts.connection)
    with database.connect(login_url) as worker:
        for table, opened, closed in (
            ("portal_sync_events", "status = 'blocked'", "status = 'delivered'"),
            ("cert_notification_log", "status = 'failed'", "status = 'sent'"),
            ("dynamics_sync_failures", "resolved_at = NULL", "resolved_at = now()"),
            ("coordinator_digests", "status = 'failed'", "status = 'sent'"),
        ):
            worker.execute(f"UPDATE {table} SET {opened}".encode())
            assert worker.execute(f"DELETE FROM {table}".encode()).rowcount == 0, table
            worker.execute(f"UPDATE {table} SET {closed}".encode())
            assert worker.execute(f"DELETE FROM {table}".encode()).rowcount == 1, table


def test_migrate_grants_to_supabases_roles_that_came_later(connection: database.Connection) -> None:
    """Without auth.uid(), certjob cannot identify the coordinator, so it grants no right."""
    supabase.set_up(connection)
    ours = furnish(connection, "hlf", api=connection)
    with pytest.raises(DENIED):
        ours.asks("SELECT id FROM certjob.mentors")

    assert migrations.migrate(connection) == []

    assert ours.asks("SELECT id FROM certjob.mentors") == [(ours.mentor,)]


def test_owner_of_the_database_can_migrate(server_url: str) -> None:
    """The owner is not a superuser, as on Supabase."""
    name = f"certjob_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN".encode())
        admin.execute(f"CREATE DATABASE {name} OWNER {name} TEMPLATE template0".encode())
        try:
            with database.connect(psycopg.conninfo.make_conninfo(server_url, dbname=name, user=name)) as owner:
                assert migrations.migrate(owner) != []
                assert migrations.migrate(owner) == []
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            admin.execute(f"DROP ROLE {name}".encode())
