"""Migrations are safe to repeat, do not block the app, and their errors have a next step."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from certjob import database
from certjob.database import migrations
from certjob.errors import ConfigurationError, DatabaseUnavailableError, SchemaError

ALL = [each.version for each in migrations.migrations()]


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[database.Connection]:
    """A connection to a database without certjob's schema."""
    with database.connect(empty_database_url) as connection:
        yield connection


def directory(path: Path, **files: str) -> Path:
    """Write a folder of migrations; ``_0001_first="CREATE …"`` becomes ``0001_first.sql``."""
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / f"{name.removeprefix('_')}.sql").write_text(text, encoding="utf-8")
    return path


def schema_of(connection: database.Connection) -> tuple[set[str], list[int]]:
    """Return the tables of certjob without the ledger, and the versions in the ledger."""
    tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'certjob'")}
    if "migrations" not in tables:
        return tables, []
    rows = connection.execute("SELECT version FROM certjob.migrations ORDER BY version")
    return tables - {"migrations"}, [row[0] for row in rows]


def test_migrate_applies_each_migration_once_in_order(empty: database.Connection) -> None:
    """The ledger has each file with its checksum. Reading the status creates no ledger."""
    assert list(range(1, len(ALL) + 1)) == ALL, "two files have the same number"
    assert {each.applied_at for each in migrations.status(empty)} == {None}
    assert schema_of(empty) == (set(), [])
    with pytest.raises(SchemaError, match="run `certjob db migrate`") as caught:
        migrations.require_current(empty)
    assert caught.value.exit_code == 2

    result = migrations.migrate(empty)

    status = migrations.status(empty)
    assert [each.version for each in result] == ALL
    assert [(each.version, each.sha256) for each in status] == [(each.version, each.sha256) for each in result]
    assert all(each.applied_at for each in status)
    assert (migrations.migrate(empty), migrations.status(empty)) == ([], status)
    migrations.require_current(empty)


FIRST = "CREATE TABLE first (); CREATE FUNCTION certjob_private.set_up_rights() RETURNS void LANGUAGE sql AS ''"


def test_failed_migration_leaves_no_trace(empty: database.Connection, tmp_path: Path) -> None:
    """Files before it are rolled back as well."""
    folder = directory(tmp_path / "m", _0001_first=FIRST, _0002_second="CREATE TABLE half (); SELECT 1 / 0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        migrations.migrate(empty, folder)

    assert schema_of(empty) == (set(), [])


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ("SELECT FROM certjob.first", "in use by another session"),
        (f"SELECT pg_advisory_xact_lock({migrations.LOCK_KEY})", "another `certjob db migrate`"),
    ],
    ids=["table in use", "other migration"],
)
def test_migration_soon_gives_up_waiting_for_a_lock(
    empty: database.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: str, says: str
) -> None:
    """All queries of the app would wait behind the ALTER TABLE. A later migration succeeds."""
    monkeypatch.setattr(migrations, "_TABLE_LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(migrations, "_LOCK_WAIT_SECONDS", 0)
    monkeypatch.setattr(migrations, "_POLL_SECONDS", 0.01)
    folder = directory(tmp_path / "m", _0001_first=FIRST)
    migrations.migrate(empty, folder)
    directory(folder, _0002_second="CREATE TABLE second (); ALTER TABLE first ADD id int")

    with psycopg.connect(empty.info.dsn) as other:
        other.execute(held.encode())
        with pytest.raises(DatabaseUnavailableError, match=says):
            migrations.migrate(empty, folder)

    assert schema_of(empty) == ({"first"}, [1])
    assert [each.version for each in migrations.migrate(empty, folder)] == [2]


def test_edited_migration_is_refused(empty: database.Connection, tmp_path: Path) -> None:
    """Files after it are not applied."""
    folder = directory(tmp_path / "m", _0001_first=FIRST)
    migrations.migrate(empty, folder)
    directory(folder, _0001_first="CREATE TABLE first (id int)", _0002_second="CREATE TABLE second ()")

    for refused in (migrations.migrate, migrations.status):
        with pytest.raises(SchemaError, match=r"0001_first was edited .* restore the file"):
            refused(empty, folder)

    assert schema_of(empty) == ({"first"}, [1])


def test_user_without_rights_gets_the_reason(empty: database.Connection) -> None:
    """Row-level security raises no error, so a run on tables that look empty would fail silently."""
    role, owner = f"certjob_test_{uuid.uuid4().hex[:12]}", str(empty.info.user)
    try:
        empty.execute(f"CREATE ROLE {role} NOLOGIN; SET ROLE {role}".encode())
        with pytest.raises(ConfigurationError, match=r"may not change the schema \(permission denied.*its owner"):
            migrations.migrate(empty)

        empty.execute("RESET ROLE")
        migrations.migrate(empty)
        empty.execute(f"SET ROLE {role}".encode())
        with pytest.raises(ConfigurationError, match=r"may not read certjob's tables \(permission denied"):
            migrations.require_current(empty)

        empty.execute(
            f"RESET ROLE; GRANT USAGE ON SCHEMA certjob TO {role}; GRANT SELECT ON certjob.migrations TO {role};"
            f"SET ROLE {role}".encode()
        )
        with pytest.raises(ConfigurationError, match=r"row-level security hides .* GRANT certjob_worker TO "):
            migrations.require_current(empty)
    finally:
        empty.execute(f"SET ROLE {owner}; DROP OWNED BY {role}; DROP ROLE {role}".encode())
