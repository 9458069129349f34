"""A replica, or a server that is not quite there yet: the line says which it is, and what to do."""

import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest

from certjob import connections, database
from certjob.database import Connection
from tests.chaos.cluster import Cluster
from tests.command_line import assert_one_line, run_in_process
from tests.facts import TODAY, Facts


@pytest.fixture(scope="module")
def standby() -> Iterator[str]:
    """The URL of a migrated database with a mentor, on a hot standby: a server in recovery that answers questions."""
    folder = Path(tempfile.mkdtemp(prefix="certjob-standby-"))
    folder.chmod(0o755)
    with Cluster(folder) as cluster, cluster.fresh_database("standby"):
        with database.connect(cluster.url("standby")) as connection:
            people = Facts(connection)
            people.certified_mentor(people.organisation(), TODAY - timedelta(days=1))
        signal = folder / "postgresql" / "standby.signal"
        cluster.stop()
        signal.touch()
        cluster.start()
        yield cluster.url("standby")
        cluster.stop()
        signal.unlink()
        cluster.start()


@pytest.fixture
def environment(standby: str, bare_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return bare_environment | {"CERTJOB_DATABASE_URL": standby, "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}"}


@pytest.mark.parametrize(
    "command",
    ["run", "deliver", "deliver --all", "resync M1001", "alerts --retry-all", "db prune --older-than 3y"],
)
def test_what_writes_says_that_this_is_no_primary(command: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Exit 1, one line, the server's reason and the next step; nothing was called or mailed."""
    result = run_in_process(*command.split(), environment=environment, folder=tmp_path)

    words = " ".join(word for word in command.split() if word.isalpha())
    assert_one_line(
        result,
        "the database is read-only (cannot execute",
        "use the primary",
        code=1,
        command=f"certjob {words}",
    )
    assert not list(tmp_path.glob("mail/new/*"))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("run --dry-run", 0),
        ("explain M1001", 0),
        ("list --csv", 0),
        ("forecast --csv", 0),
        ("alerts", 0),
        ("db status", 0),
        ("organisation list", 0),
        ("db prune --older-than 3y --dry-run", 0),
    ],
)
def test_what_only_looks_works_on_it(command: str, code: int, environment: dict[str, str], tmp_path: Path) -> None:
    """A replica is the right place for that."""
    result = run_in_process(*command.split(), environment=environment, folder=tmp_path)

    assert (result.returncode, result.stderr) == (code, "")


def test_a_migration_is_sent_to_the_primary(environment: dict[str, str], tmp_path: Path) -> None:
    """Up to date, there is nothing to do; with something to do, it says where."""
    result = run_in_process("db", "migrate", environment=environment, folder=tmp_path)

    assert_one_line(result, "the database is read-only; migrate on the primary", code=1, command="certjob db migrate")


@pytest.mark.parametrize(
    "text",
    [
        "the database system is starting up",
        "the database system is shutting down",
        "the database system is in recovery mode",
        "the database system is not yet accepting connections\nDETAIL:  Consistent recovery state is not reached.",
        "the database system is not accepting connections\nDETAIL:  Hot standby mode is disabled.",
    ],
)
def test_a_server_that_is_not_quite_there_is_no_wrong_host(text: str) -> None:
    """Somebody would look for a mistake in the URL."""
    error = connections._connection_error(psycopg.OperationalError(f"connection failed: FATAL:  {text}"))

    assert "takes no connections just now" in str(error)
    assert "wait a minute" in str(error)
    assert error.exit_code == 1


class TestLimits:
    """No statement of a night goes on for ever."""

    def test_a_transaction_has_limits_and_leaves_none_behind(self, connection: Connection) -> None:
        """Local to it: the next client of a pooler has none of ours."""
        with database.transaction(connection, lock_timeout_ms=500):
            inside = [
                connection.execute(f"SHOW {name}".encode()).fetchone() for name in ("lock_timeout", "statement_timeout")
            ]
        after = [
            connection.execute(f"SHOW {name}".encode()).fetchone() for name in ("lock_timeout", "statement_timeout")
        ]

        assert inside == [("500ms",), ("10min",)]
        assert after == [("0",), ("0",)]

    def test_a_limit_that_the_administrator_set_stays(self, connection: Connection) -> None:
        """Shorter or longer: somebody had a reason."""
        connection.execute("SET statement_timeout = '20min'")

        with database.transaction(connection, lock_timeout_ms=500):
            assert connection.execute("SHOW statement_timeout").fetchone() == ("20min",)
