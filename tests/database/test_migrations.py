"""The migration runner: safe to repeat, to run twice at once, to kill; and clear about what is wrong."""

import os
import signal
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from certjob import database
from certjob.database import migrations
from certjob.errors import ConfigurationError, DatabaseUnavailableError, SchemaError
from tests.conftest import database_of
from tests.support.facts import TODAY, Facts
from tests.support.waiting import until

CHECKOUT = Path(__file__).parents[2]

PATIENCE_SECONDS = 60
"""How long a test waits for another process before it says that something is wrong."""


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


def tables(connection: database.Connection) -> set[str]:
    """The tables in the schema public, without the ledger."""
    rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {row[0] for row in rows} - {"certjob_migrations"}


def applied(connection: database.Connection) -> list[int]:
    """The versions in the ledger."""
    rows = connection.execute("SELECT version FROM public.certjob_migrations ORDER BY version").fetchall()
    return [row[0] for row in rows]


class TestApplying:
    """Pending files in order, each in one transaction with its line in the ledger."""

    def test_an_empty_database_gets_every_migration_in_order_and_only_once(self, empty: database.Connection) -> None:
        """Each is in the ledger with its checksum; looking before makes no ledger, and settings end with it."""
        brought = migrations.migrations()
        assert [each.version for each in brought] == list(range(1, len(brought) + 1)), "two took the same number"
        settings = [empty.execute(f"SHOW {name}".encode()).fetchone() for name in ("lock_timeout", "search_path")]
        assert {each.applied_at for each in migrations.status(empty)} == {None}
        assert empty.execute("SELECT to_regclass('public.certjob_migrations') IS NULL").fetchone() == (True,)

        result = migrations.migrate(empty)

        assert [each.version for each in result] == [each.version for each in brought]
        before = migrations.status(empty)
        assert [(each.version, each.sha256) for each in before] == [(each.version, each.sha256) for each in brought]
        assert all(each.applied_at is not None for each in before)
        assert migrations.migrate(empty) == []
        assert migrations.status(empty) == before
        migrations.require_current(empty)
        assert settings == [
            empty.execute(f"SHOW {name}".encode()).fetchone() for name in ("lock_timeout", "search_path")
        ]

    def test_a_database_that_has_no_room_for_every_name_is_refused_at_once(
        self, empty: database.Connection, empty_database_url: str
    ) -> None:
        """Not half-way, at the first letter that it lacks, when some of the tables are there."""
        name = f"certjob_test_{uuid.uuid4().hex}"
        empty.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'".encode())
        try:
            with (
                database.connect(database_of(empty_database_url, name)) as latin,
                pytest.raises(ConfigurationError, match=r"encoding is LATIN1.*ENCODING 'UTF8'"),
            ):
                migrations.migrate(latin)
            with database.connect(database_of(empty_database_url, name)) as latin:
                assert latin.execute("SELECT to_regclass('mentors')").fetchone() == (None,)
        finally:
            empty.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def test_only_what_is_pending_is_applied(self, empty: database.Connection, tmp_path: Path) -> None:
        """A newer certjob brings one more file."""
        folder = directory(tmp_path / "m", _0001_first="CREATE TABLE first ()")
        migrations.migrate(empty, folder)
        directory(folder, _0002_second="CREATE TABLE second ()")

        pending = [each.version for each in migrations.status(empty, folder) if each.applied_at is None]
        result = migrations.migrate(empty, folder)

        assert pending == [2]
        assert [(each.version, each.name) for each in result] == [(2, "second")]
        assert tables(empty) == {"first", "second"}

    def test_a_file_that_fails_leaves_nothing_of_itself(self, empty: database.Connection, tmp_path: Path) -> None:
        """The files before it stay applied; corrected, it goes through."""
        folder = directory(
            tmp_path / "m",
            _0001_first="CREATE TABLE first ()",
            _0002_second="CREATE TABLE half (); SELECT 1 / 0; CREATE TABLE second ()",
        )

        with pytest.raises(psycopg.errors.DivisionByZero):
            migrations.migrate(empty, folder)

        assert tables(empty) == {"first"}
        assert applied(empty) == [1]
        directory(folder, _0002_second="CREATE TABLE second ()")
        assert [each.version for each in migrations.migrate(empty, folder)] == [2]

    def test_the_tables_are_made_in_public_whatever_the_users_search_path(self, empty: database.Connection) -> None:
        """The trigger functions name them there; a schema of the user's own name comes first by default."""
        empty.execute("CREATE SCHEMA app")
        empty.execute("SET search_path = app, public")

        migrations.migrate(empty)

        facts = Facts(empty)
        facts.certified_mentor(facts.organisation(), TODAY)
        migrations.require_current(empty)
        assert facts.rows("SELECT count(*) FROM pg_tables WHERE schemaname = 'app'") == [(0,)]


class TestTwoAtOnce:
    """Several machines deploy in the same minute."""

    def test_each_migration_is_applied_once_by_whoever_comes_first(self, empty_database_url: str) -> None:
        """Four begin at the same moment; nobody fails."""
        barrier = threading.Barrier(4)
        results: list[list[int]] = []
        errors: list[Exception] = []

        def migrate() -> None:
            try:
                with database.connect(empty_database_url) as connection:
                    barrier.wait(PATIENCE_SECONDS)
                    results.append([each.version for each in migrations.migrate(connection)])
            except Exception as error:  # noqa: BLE001 - told by the assertion below
                errors.append(error)

        threads = [threading.Thread(target=migrate, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)

        assert errors == []
        assert len(results) == 4
        versions = [version for result in results for version in result]
        assert sorted(versions) == [each.version for each in migrations.migrations()]

    def test_somebody_who_waits_too_long_is_told_that_another_one_is_running(
        self, empty: database.Connection, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without having changed anything."""
        monkeypatch.setattr(migrations, "_LOCK_WAIT_SECONDS", 0.3)

        with psycopg.connect(empty_database_url) as other:
            other.execute("SELECT pg_advisory_xact_lock(%s)", (migrations._LOCK_KEY,))
            with pytest.raises(DatabaseUnavailableError, match="another `certjob db migrate` is running"):
                migrations.migrate(empty)

        assert tables(empty) == set()
        assert len(migrations.migrate(empty)) == len(migrations.migrations())


SLOW = """
CREATE TABLE half ();
SELECT pg_sleep(current_setting('certjob_test.seconds', true)::float);
CREATE TABLE other_half ();
"""
"""Sleeps only for whoever set certjob_test.seconds."""

MIGRATE = """
import sys
from pathlib import Path
from certjob import database
from certjob.database import migrations
with database.connect(sys.argv[1]) as connection:
    migrations.migrate(connection, Path(sys.argv[2]))
"""


class TestKilled:
    """kill -9 in the middle of a file."""

    def test_a_killed_migration_leaves_nothing_half_done_and_the_next_one_succeeds(
        self, empty: database.Connection, empty_database_url: str, tmp_path: Path
    ) -> None:
        """The server may go on with the statement for a while: the next one waits for it, then does it all."""
        folder = directory(
            tmp_path / "m", _0001_first="CREATE TABLE first ()", _0002_slow=SLOW, _0003_last="CREATE TABLE last ()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", MIGRATE, empty_database_url, str(folder)],
            env=os.environ | {"PGOPTIONS": "-c certjob_test.seconds=2"},
            cwd=CHECKOUT,
        )
        try:
            until(lambda: self.somebody_sleeps(empty, process), seconds=PATIENCE_SECONDS)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(PATIENCE_SECONDS)

        seen_after_the_kill = tables(empty), applied(empty)
        result = migrations.migrate(empty, folder)

        assert seen_after_the_kill == ({"first"}, [1])
        assert [each.version for each in result] == [2, 3]
        assert tables(empty) == {"first", "half", "other_half", "last"}
        assert applied(empty) == [1, 2, 3]

    @staticmethod
    def somebody_sleeps(connection: database.Connection, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, "the migration ended by itself"
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        ).fetchone()
        return row == (1,)


class TestRefusals:
    """What must not be migrated, or worked with, and what to do about it."""

    def test_an_applied_file_that_was_edited_is_refused_by_name(
        self, empty: database.Connection, tmp_path: Path
    ) -> None:
        """Nothing after it is applied either: nobody knows what the database holds."""
        folder = directory(tmp_path / "m", _0001_first="CREATE TABLE first ()")
        migrations.migrate(empty, folder)
        directory(folder, _0001_first="CREATE TABLE first (id int)", _0002_second="CREATE TABLE second ()")

        with pytest.raises(SchemaError, match=r"0001_first was edited .* restore the file"):
            migrations.migrate(empty, folder)

        with pytest.raises(SchemaError, match="0001_first"):
            migrations.status(empty, folder)
        assert tables(empty) == {"first"}

    def test_a_newer_schema_is_refused_by_name(self, connection: database.Connection) -> None:
        """An old certjob would not know what the new columns mean."""
        connection.execute("INSERT INTO certjob_migrations (version, name, sha256) VALUES (9001, 'tomorrow', 'x')")

        for refused in (migrations.migrate, migrations.status, migrations.require_current):
            with pytest.raises(SchemaError, match=r"newer than this certjob .*9001_tomorrow.*install"):
                refused(connection)

    def test_a_database_without_the_schema_or_the_last_migration_is_told_the_command(
        self, empty: database.Connection
    ) -> None:
        """A forgotten first step is the most common mistake."""
        with pytest.raises(SchemaError, match="run `certjob db migrate`") as caught:
            migrations.require_current(empty)
        assert caught.value.exit_code == 2
        migrations.migrate(empty)
        empty.execute("DELETE FROM certjob_migrations WHERE version = (SELECT max(version) FROM certjob_migrations)")

        with pytest.raises(SchemaError, match=r"1 pending\); run `certjob db migrate`"):
            migrations.require_current(empty)

    def test_a_database_that_holds_tables_of_that_name_is_left_alone(self, empty: database.Connection) -> None:
        """The app's own table of mentors is not ours."""
        empty.execute("CREATE TABLE mentors (nickname text)")

        with pytest.raises(SchemaError, match=r"0001_facts failed: .*mentors.* already exists; .* empty database"):
            migrations.migrate(empty)

        assert tables(empty) == {"mentors"}
        empty.execute(
            "DROP TABLE mentors; CREATE SCHEMA certjob_private"
        )  # DROP SCHEMA public CASCADE leaves it behind
        with pytest.raises(SchemaError, match="certjob_private"):
            migrations.migrate(empty)

    def test_a_read_only_database_is_told_to_migrate_on_the_primary(self, empty: database.Connection) -> None:
        """A replica's URL by mistake."""
        empty.execute("SET default_transaction_read_only = on")

        with pytest.raises(DatabaseUnavailableError, match="read-only; migrate on the primary"):
            migrations.migrate(empty)

    def test_a_busy_table_ends_the_wait_in_a_clear_message(
        self, empty: database.Connection, empty_database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind a waiting ALTER TABLE every query of the app would queue up: give up soon, change nothing."""
        monkeypatch.setattr(migrations, "_TABLE_LOCK_TIMEOUT", "200ms")
        folder = directory(tmp_path / "m", _0001_first="CREATE TABLE first ()")
        migrations.migrate(empty, folder)
        directory(folder, _0002_second="CREATE TABLE second (); ALTER TABLE first ADD id int")

        with psycopg.connect(empty_database_url) as reader:
            reader.execute("SELECT FROM first")
            with pytest.raises(DatabaseUnavailableError, match="in use by another session"):
                migrations.migrate(empty, folder)

        assert tables(empty) == {"first"}
        assert [each.version for each in migrations.migrate(empty, folder)] == [2]


def test_a_database_user_who_may_too_little_is_told_what_is_missing(empty: database.Connection) -> None:
    """With PostgreSQL's own reason; BYPASSRLS is not the only way to be let in."""
    role = f"certjob_test_{uuid.uuid4().hex[:12]}"
    owner = str(empty.info.user)

    def granted(*statements: str) -> None:
        empty.execute("RESET ROLE")
        for statement in statements:
            empty.execute(statement.encode())
        empty.execute(f"SET ROLE {role}".encode())

    def refused(work: Callable[[database.Connection], object], match: str) -> None:
        with pytest.raises(ConfigurationError, match=match):
            work(empty)

    try:
        granted(f"CREATE ROLE {role} NOLOGIN")
        refused(migrations.migrate, r"may not change the schema \(permission denied.*as its owner")
        empty.execute("RESET ROLE")
        migrations.migrate(empty)
        granted()
        refused(migrations.require_current, r"may not read certjob's tables \(permission denied")
        granted(f"GRANT ALL ON SCHEMA public TO {role}")
        refused(migrations.migrate, r"must be owner.*migrate as its owner")
        granted(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        # Row-level security makes no noise: a night over an empty-looking table would fail silently.
        refused(migrations.require_current, r"row-level security hides .* GRANT certjob_worker TO ")
        granted(f"CREATE POLICY job ON certjob_migrations TO {role} USING (true)")
        migrations.require_current(empty)
        assert all(migration.applied_at for migration in migrations.status(empty))
        empty.execute("SET search_path = pg_catalog")
        refused(migrations.require_current, "search_path")
    finally:
        empty.execute(f"SET ROLE {owner}; DROP OWNED BY {role}; DROP ROLE {role}".encode())


class TestPackaging:
    """The SQL comes along, however certjob was installed."""

    def test_a_checkout_reads_the_sql_beside_the_package(self) -> None:
        """An editable install has no copy inside."""
        assert database.sql_directory() == CHECKOUT / "sql"

    def test_the_wheel_holds_every_statement_and_finds_it_there(self, tmp_path: Path) -> None:
        """Built from the checkout without a network, unpacked, imported."""
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=CHECKOUT)
        (wheel,) = tmp_path.glob("*.whl")

        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            archive.extractall(tmp_path / "installed")
        answer = run(
            sys.executable,
            "-c",
            "from certjob import database; from certjob.database import migrations; "
            "print(database.sql_directory(), len(migrations.migrations()))",
            cwd=tmp_path,
            PYTHONPATH=str(tmp_path / "installed"),
        )

        statements = {f"certjob/{path.relative_to(CHECKOUT)}" for path in (CHECKOUT / "sql").rglob("*.sql")}
        assert statements <= names
        assert "certjob/py.typed" in names
        assert answer.split() == [str(tmp_path / "installed/certjob/sql"), str(len(migrations.migrations()))]


def run(*command: str, cwd: Path, **environment: Any) -> str:
    """Run a command that must succeed and return what it printed."""
    result = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
