"""The role certjob_worker: every command works with it, other statements do not; and how roles are created."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from certjob import database
from certjob.database import embedded, migrations
from certjob.errors import ConfigurationError
from tests.conftest import database_of
from tests.database import supabase
from tests.database.everything import do_everything
from tests.database.supabase import DENIED, furnish
from tests.support.facts import Facts
from tests.support.own_server import data_folder

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

    do_everything(login_url, facts=facts, environment=bare_environment, folder=tmp_path)


def test_worker_cannot_do_more_than_certjob_does(login_url: str, facts: Facts) -> None:
    """This limits a stolen login."""
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


# On a separate server without any roles.

Admin = psycopg.Connection[tuple[object, ...]]


@pytest.fixture(scope="module")
def own_server() -> Iterator[str]:
    with data_folder("roles") as folder, embedded.server(folder / "postgresql") as url:
        yield url


@pytest.fixture
def admin(own_server: str) -> Iterator[Admin]:
    """A connection of that server's superuser, which drops all databases and roles at the end."""
    with psycopg.connect(own_server, autocommit=True) as admin:
        yield admin
        for (name,) in admin.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test%'").fetchall():
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
        for (name,) in admin.execute("SELECT rolname FROM pg_roles WHERE rolname !~ '^(pg_|postgres)'").fetchall():
            admin.execute(f"DROP ROLE {name}".encode())


def new_database(admin: Admin, owner: str = "postgres") -> str:
    """The URL of an empty database, as its owner."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin.execute(f"CREATE DATABASE {name} OWNER {owner}".encode())
    return psycopg.conninfo.make_conninfo(database_of(admin.info.dsn, name), user=owner)


def test_migrate_creates_the_worker_and_grants_to_later_roles(admin: Admin) -> None:
    """The owner is not a superuser, as on Supabase. The worker cannot log in."""
    admin.execute("CREATE ROLE landlord LOGIN CREATEROLE")
    url = new_database(admin, "landlord")
    as_superuser = psycopg.conninfo.make_conninfo(url, user="postgres")
    with database.connect(as_superuser) as superuser, database.connect(url) as landlord:
        migrations.migrate(landlord)
        rights = "SELECT rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles"
        made = superuser.execute(f"{rights} WHERE rolname = 'certjob_worker'".encode()).fetchall()
        assert made == [(False, False, False, False, False)]

        supabase.set_up(superuser)
        superuser.execute("ALTER PUBLICATION supabase_realtime OWNER TO landlord")
        superuser.execute("GRANT USAGE ON SCHEMA auth TO landlord; SET search_path = certjob")
        landlord.execute("SET search_path = certjob")
        ours, _ = (furnish(landlord, slug, api=superuser) for slug in ("hlf", "nhf"))
        with pytest.raises(DENIED):
            ours.asks("SELECT id FROM certjob.mentors")
        assert migrations.migrate(landlord) == []
        assert ours.asks("SELECT id FROM mentors") == [(ours.mentor,)]


def test_owner_without_createrole_gets_the_statement_to_run(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    """Without the role, no object is created. With it, the migration prints no message."""
    admin.execute("CREATE ROLE landlord LOGIN; ALTER ROLE landlord SET client_min_messages = 'error'")
    with database.connect(new_database(admin, "landlord")) as connection:
        with pytest.raises(ConfigurationError, match=r"administrator, run `CREATE ROLE certjob_worker NOLOGIN`"):
            migrations.migrate(connection)
        assert connection.execute("SELECT FROM pg_namespace WHERE nspname ~ 'certjob'").rowcount == 0

        admin.execute("CREATE ROLE certjob_worker NOLOGIN; GRANT certjob_worker TO landlord")
        migrations.migrate(connection)
        connection.execute("SET ROLE certjob_worker")
        migrations.require_current(connection)
    assert caplog.text == ""
