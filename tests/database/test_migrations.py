"""The migration runner: safe to repeat and to run twice at once; and clear about what is wrong."""

import os
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier

import psycopg
import pytest

from certjob import database
from certjob.database import migrations
from certjob.errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from tests.conftest import database_of
from tests.support.facts import TODAY, Facts

CHECKOUT = Path(__file__).parents[2]
ALL = [each.version for each in migrations.migrations()]


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[database.Connection]:
    """certjob's kind of connection to a database without its schema."""
    with database.connect(empty_database_url) as connection:
        yield connection


def directory(path: Path, **files: str) -> Path:
    """A folder of migrations: ``_0001_first="CREATE …"`` becomes ``0001_first.sql``."""
    path.mkdir(exist_ok=True)
    for name, text in files.items():
        (path / f"{name.removeprefix('_')}.sql").write_text(text, encoding="utf-8")
    return path


def there(connection: database.Connection) -> tuple[set[str], list[int]]:
    """The tables in the schema certjob, without the ledger, and the versions that are in it."""
    tables = {row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'certjob'")}
    if "migrations" not in tables:
        return tables, []
    rows = connection.execute("SELECT version FROM certjob.migrations ORDER BY version")
    return tables - {"migrations"}, [row[0] for row in rows]


def test_an_empty_database_gets_every_migration_in_order_and_only_once(empty: database.Connection) -> None:
    """Each is in the ledger with its checksum; looking before makes no ledger, and settings end with it.

    An app's tables of the same names stay as they are, although its schema comes first in the search path.
    """
    assert list(range(1, len(ALL) + 1)) == ALL, "two took the same number"
    empty.execute("CREATE SCHEMA app; SET search_path = app, certjob; SET lock_timeout = '7s'")
    empty.execute("CREATE TABLE app.mentors (nickname text); CREATE TABLE public.mentors (nickname text)")
    empty.execute("CREATE PUBLICATION supabase_realtime FOR ALL TABLES")  # to which no table can be added
    assert {each.applied_at for each in migrations.status(empty)} == {None}
    assert there(empty) == (set(), [])
    with pytest.raises(SchemaError, match="run `certjob db migrate`") as caught:
        migrations.require_current(empty)
    assert caught.value.exit_code == 2

    result = migrations.migrate(empty)

    assert [each.version for each in result] == ALL
    status = migrations.status(empty)
    assert [(each.version, each.sha256) for each in status] == [(each.version, each.sha256) for each in result]
    assert all(each.applied_at for each in status)
    assert migrations.migrate(empty) == []
    assert migrations.status(empty) == status
    migrations.require_current(empty)
    assert [empty.execute(f"SHOW {name}".encode()).fetchone() for name in ("lock_timeout", "search_path")] == [
        ("7s",),
        ("app, certjob",),
    ]
    empty.execute("SET search_path = certjob")
    facts = Facts(empty)
    facts.certified_mentor(facts.organisation(), TODAY)
    tables = "SELECT tablename FROM pg_tables WHERE schemaname IN ('app', 'public')"
    assert facts.rows(tables) == [("mentors",)] * 2
    assert facts.rows("SELECT count(*) FROM app.mentors") == facts.rows("SELECT count(*) FROM public.mentors") == [(0,)]


def test_a_file_is_applied_whole_or_not_at_all_and_never_edited_afterwards(
    empty: database.Connection, empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails; a table that it alters is in use (behind a waiting ALTER every query of the app would queue up, so it
    gives up soon), or another migration takes too long; it goes through. Edited, it is refused, and nothing after it
    is applied: nobody knows what is there.
    """
    monkeypatch.setattr(migrations, "_TABLE_LOCK_TIMEOUT", "200ms")
    monkeypatch.setattr(migrations, "_LOCK_WAIT_SECONDS", 0.1)
    folder = directory(
        tmp_path / "m",
        _0001_first="CREATE TABLE first (); "
        "CREATE FUNCTION certjob_private.set_up_rights() RETURNS void LANGUAGE sql AS ''",
        _0002_second="CREATE TABLE half (); SELECT 1 / 0",
    )
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrations.migrate(empty, folder)
    assert there(empty) == (set(), [])
    (folder / "0002_second.sql").unlink()
    assert [each.version for each in migrations.migrate(empty, folder)] == [1]

    directory(folder, _0002_second="CREATE TABLE second (); ALTER TABLE first ADD id int")
    for held, says in (
        ("SELECT FROM first", "in use by another session"),
        (f"SELECT pg_advisory_xact_lock({migrations._LOCK_KEY})", "another `certjob db migrate` is running"),
    ):
        with psycopg.connect(empty_database_url) as other:
            other.execute(held.encode())
            with pytest.raises(DatabaseUnavailableError, match=says):
                migrations.migrate(empty, folder)
        assert there(empty) == ({"first"}, [1])

    assert [each.version for each in migrations.status(empty, folder) if each.applied_at is None] == [2]
    assert [(each.version, each.name) for each in migrations.migrate(empty, folder)] == [(2, "second")]
    directory(folder, _0001_first="CREATE TABLE first (id int)", _0003_third="CREATE TABLE third ()")
    for refused in (migrations.migrate, migrations.status):
        with pytest.raises(SchemaError, match=r"0001_first was edited .* restore the file"):
            refused(empty, folder)
    assert there(empty) == ({"first", "second"}, [1, 2])


def test_of_several_at_once_each_migration_is_applied_by_one(empty_database_url: str) -> None:
    """Several machines deploy in the same minute; nobody fails."""
    barrier = Barrier(4)

    def migrate(_: int) -> list[int]:
        with database.connect(empty_database_url) as connection:
            barrier.wait(60)
            return [each.version for each in migrations.migrate(connection)]

    with ThreadPoolExecutor(4) as threads:
        applied = [version for each in threads.map(migrate, range(4), timeout=60) for version in each]

    assert sorted(applied) == ALL


def test_a_database_that_has_no_room_for_every_name_is_refused(empty: database.Connection, server_url: str) -> None:
    """Not half-way, at the first letter that it lacks, when some of the tables are there."""
    name = f"certjob_test_{uuid.uuid4().hex}"
    empty.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'".encode())
    try:
        with database.connect(database_of(server_url, name)) as latin:
            with pytest.raises(ConfigurationError, match=r"encoding is LATIN1.*ENCODING 'UTF8'"):
                migrations.migrate(latin)
            assert there(latin) == (set(), [])
    finally:
        empty.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_a_read_only_database_and_one_that_holds_something_of_that_name_are_refused(empty: database.Connection) -> None:
    """A replica's URL by mistake; an app whose own schema is called certjob."""
    for before, error, says in (
        ("SET default_transaction_read_only = on", DatabaseUnavailableError, "read-only; migrate on the primary"),
        (
            "SET default_transaction_read_only = off; CREATE SCHEMA certjob; CREATE TABLE certjob.mentors ()",
            SchemaError,
            r"0001_facts failed: .*mentors.* already exists; the schema certjob is for certjob's tables only",
        ),
    ):
        for statement in before.split("; "):
            empty.execute(statement.encode())
        with pytest.raises(error, match=says):
            migrations.migrate(empty)


def test_a_database_user_who_may_too_little_is_told_postgresqls_own_reason(empty: database.Connection) -> None:
    """Row-level security makes no noise: a night over an empty-looking table would fail silently.

    BYPASSRLS is not the only way to be let in.
    """
    role, owner = f"certjob_test_{uuid.uuid4().hex[:12]}", str(empty.info.user)
    migrate, require = migrations.migrate, migrations.require_current
    steps: tuple[tuple[str, Callable[[database.Connection], object], str], ...] = (
        (f"CREATE ROLE {role} NOLOGIN", migrate, r"may not change the schema \(permission denied.*its owner"),
        ("", require, r"may not read certjob's tables \(permission denied"),
        (f"GRANT ALL ON SCHEMA certjob TO {role}", migrate, r"permission denied.*migrate as its owner"),
        (
            f"GRANT SELECT ON certjob.migrations TO {role}",
            require,
            r"row-level security hides .* GRANT certjob_worker TO ",
        ),
        (f"CREATE POLICY job ON certjob.migrations TO {role} USING (true)", require, ""),
    )
    try:
        for before, work, says in steps:
            empty.execute(f"{before}; SET ROLE {role}".encode())
            with pytest.raises(ConfigurationError, match=says) if says else nullcontext():
                work(empty)
            empty.execute("RESET ROLE")
            if says.startswith("may not change"):
                migrate(empty)
    finally:
        empty.execute(f"SET ROLE {owner}; DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_the_wheel_holds_statements_and_templates_and_a_checkout_is_found_beside_the_package(tmp_path: Path) -> None:
    """Built from the checkout without a network, unpacked, imported; an editable install has no copy inside."""

    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=CHECKOUT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    look = "from certjob.database import migrations as m, sql_directory; print(sql_directory(), len(m.migrations()))"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    answer = subprocess.check_output([sys.executable, "-c", look], cwd=tmp_path, env=environment, text=True)

    brought = [path for path in (CHECKOUT / "certjob/mail/messages").iterdir() if path.is_file()]
    wanted = {f"certjob/{path.relative_to(CHECKOUT)}" for path in (CHECKOUT / "sql").rglob("*.sql")}
    assert wanted | {str(path.relative_to(CHECKOUT)) for path in brought} | {"certjob/py.typed"} <= names
    assert answer.split() == [str(tmp_path / "installed/certjob/sql"), str(len(ALL))]
    assert database.sql_directory() == CHECKOUT / "sql"
