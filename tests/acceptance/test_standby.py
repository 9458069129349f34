"""A replica, or a server that is not quite there yet: the line says which it is, and what to do."""

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import typer

from certjob import database
from certjob.cli import entry
from certjob.cli.app import app
from certjob.database import Connection
from tests.chaos.cluster import Cluster
from tests.support.bounces import postfix
from tests.support.command_line import assert_one_line, run_in_process
from tests.support.facts import TODAY, Facts
from tests.support.own_server import data_folder
from tests.support.portal_server import PortalServer


@pytest.fixture(scope="module")
def standby() -> Iterator[str]:
    """The URL of a migrated database with a mentor, on a hot standby: a server in recovery that answers questions."""
    with data_folder("standby") as folder, Cluster(folder) as cluster, cluster.fresh_database("standby"):
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
def portal() -> Iterator[PortalServer]:
    """It shows nobody."""
    with PortalServer() as server:
        yield server


@pytest.fixture
def environment(standby: str, portal: PortalServer, bare_environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
    return bare_environment | {
        "CERTJOB_DATABASE_URL": standby,
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": portal.key,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
    }


WRITES = (
    *("run", "deliver", "reconcile", "resync M1001", "alerts --retry-all", "db prune --older-than 3y"),
    *("load people.csv", "organisation set nord-lys", "bounces report.eml"),
)
LOOKS = {
    "alerts": 0,
    "alerts --json": 0,
    "check": 1,  # which says that it is a standby
    "db prune --older-than 3y --dry-run": 0,
    "db status": 0,
    "explain M1001": 0,
    "forecast --csv": 0,
    "list --csv": 0,
    "organisation list": 0,
    "organisation set --dry-run --thresholds 90 hlf": 0,
    "organisation show --json hlf": 0,
    "preview M1001 --threshold -1": 0,
    "reconcile --dry-run": 0,
    "run --dry-run": 0,
    "status": 3,  # no night has run here
}
"""With the exit code of each."""
ELSEWHERE = {"demo": "has a database of its own", "db migrate": "says where to go instead"}


def words_of(command: str) -> str:
    """The command without its arguments: `db prune`."""
    words = itertools.takewhile(lambda word: word.isalpha() and word.islower(), command.split())
    return " ".join(words)


def test_the_line_names_what_works_here() -> None:
    """Every command there is, by what the two tests below find out about it."""
    everything: set[str] = set()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        everything |= {f"{name} {sub}" for sub in getattr(command, "commands", {})} or {name}
    always, dry = entry.WORKS_READ_ONLY.removeprefix("What works here: ").split(", and with --dry-run ")

    assert everything == {words_of(command) for command in (*WRITES, *LOOKS)} | ELSEWHERE.keys()
    assert always.split(", ") == sorted({words_of(command) for command in LOOKS if "--dry-run" not in command})
    assert dry.replace(" and ", ", ").split(", ") == sorted(
        {words_of(command) for command in LOOKS if "--dry-run" in command}
    )


@pytest.mark.parametrize("command", WRITES)
def test_what_writes_says_that_this_is_no_primary(
    command: str, environment: dict[str, str], portal: PortalServer, tmp_path: Path
) -> None:
    """Exit 1, one line, the server's reason and the next step; nothing was called or mailed."""
    header = "organisation,member_no,email,kind,issued_on,expires_on"
    (tmp_path / "people.csv").write_text(f"{header}\nhlf,M1,m1@example.org,likeperson,2024-01-01,2026-01-01\n")
    (tmp_path / "report.eml").write_bytes(postfix("<certjob-reminder-1-0@example.org>", "m1@example.org"))

    result = run_in_process(*command.split(), environment=environment, folder=tmp_path)

    assert_one_line(
        result,
        "the database is read-only (cannot execute",
        "use the primary",
        entry.WORKS_READ_ONLY,
        code=1,
        command=f"certjob {words_of(command)}",
    )
    assert not list(tmp_path.glob("mail/new/*"))
    assert portal.requests == []


@pytest.mark.parametrize(("command", "code"), LOOKS.items())
def test_what_only_looks_works_on_it(command: str, code: int, environment: dict[str, str], tmp_path: Path) -> None:
    """A replica is the right place for that."""
    result = run_in_process(*command.split(), environment=environment, folder=tmp_path)

    assert result.returncode == code
    assert "read-only (" not in result.stderr
    assert result.stdout != "" or command == "alerts"
    assert (result.stderr == "") is (code == 0 and not command.startswith("preview"))


def test_a_migration_is_sent_to_the_primary(environment: dict[str, str], tmp_path: Path) -> None:
    """Up to date, there is nothing to do; with something to do, it says where."""
    result = run_in_process("db", "migrate", environment=environment, folder=tmp_path)

    assert_one_line(result, "the database is read-only; migrate on the primary", code=1, command="certjob db migrate")


def test_no_statement_of_a_night_goes_on_for_ever(connection: Connection) -> None:
    """The limits are the transaction's own, and one that the administrator has set stays."""

    def limits() -> list[object]:
        return [
            connection.execute(f"SHOW {name}".encode()).fetchone() for name in ("lock_timeout", "statement_timeout")
        ]

    with database.transaction(connection, lock_timeout_ms=500):
        assert limits() == [("500ms",), ("10min",)]
    assert limits() == [("0",), ("0",)]
    connection.execute("SET statement_timeout = '20min'")
    with database.transaction(connection, lock_timeout_ms=500):
        assert limits() == [("500ms",), ("20min",)]
