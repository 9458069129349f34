"""On a standby the commands that read work, and the commands that write say what to do."""

import itertools
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from certjob import database
from certjob.cli import entry
from tests.conftest import Certjob
from tests.support.bounces import postfix
from tests.support.command_line import assert_one_line, commands
from tests.support.facts import TODAY, Facts
from tests.support.own_server import Cluster
from tests.support.portal_server import PortalServer

WRITE = (
    *("run", "deliver", "reconcile", "resync M1001", "alerts --retry-all", "db prune --older-than 3y"),
    *("load people.csv", "organisation set nord-lys", "bounces"),
)
READ = {
    "alerts": 0,
    "alerts --json": 0,
    "check": 1,  # it reports the standby
    "explain M1001": 0,
    "forecast": 0,
    "list --csv": 0,
    "organisation list": 0,
    "organisation show --json hlf": 0,
    "preview M1001 --threshold -1": 0,
    "reconcile --dry-run": 0,
    "run --dry-run": 0,
    "status": 3,  # there was no run
}
"""With their exit codes."""
OTHERS = {"acknowledge", "db migrate", "edge-function"}
"""These need an alert, the primary, and no database."""


@pytest.fixture(scope="module")
def standby(cluster: Cluster) -> Iterator[str]:
    """The URL of a database with one mentor, on a server in recovery that answers queries."""
    signal = cluster.folder / "postgresql" / "standby.signal"
    with cluster.fresh_database("standby") as url:
        with database.connect(url) as connection:
            facts = Facts(connection)
            facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
        cluster.stop()
        signal.touch()
        cluster.start()
        yield url
        signal.unlink()
        cluster.restart()


@pytest.fixture
def environment(environment: dict[str, str], standby: str) -> dict[str, str]:
    return environment | {"CERTJOB_DATABASE_URL": standby}


def name_of(command: str) -> str:
    """Return a command without its arguments."""
    return " ".join(itertools.takewhile(lambda word: word.isalpha() and word.islower(), command.split()))


def test_error_names_the_commands_that_work_on_a_standby() -> None:
    always, dry = entry.WORKS_READ_ONLY.removeprefix("What works here: ").split(", and with --dry-run ")

    assert {*map(name_of, (*WRITE, *READ))} | OTHERS == {name.removeprefix("certjob ") for name in commands()}
    assert always.split(", ") == sorted({name_of(command) for command in READ if "--dry-run" not in command})
    assert dry.split(" and ") == sorted(name_of(command) for command in READ if "--dry-run" in command)


@pytest.mark.parametrize("command", [*WRITE, "db migrate"])
def test_command_that_writes_asks_for_the_primary(
    command: str, here: Certjob, portal: PortalServer, tmp_path: Path
) -> None:
    """It prints one line with the server's reason, and calls and mails nothing."""
    header = "organisation,member_no,email,kind,issued_on,expires_on"
    (tmp_path / "people.csv").write_text(f"{header}\nhlf,M1,m1@example.org,likeperson,2024-01-01,2026-01-01\n")
    report = postfix("<certjob-reminder-1-0123abcd@example.org>", "m1@example.org")
    phrases = {
        "db migrate": ["the database is read-only; migrate on the primary"],
        "bounces": ["the report was not saved (ReadOnlySqlTransaction)"],
    }.get(command, ["the database is read-only (cannot execute", "use the primary", entry.WORKS_READ_ONLY])

    result = here(*command.split(), given=report)

    assert_one_line(result, *phrases, code=75 if command == "bounces" else 1, command=f"certjob {name_of(command)}")
    assert not list(tmp_path.glob("mail/new/*"))
    assert portal.requests == []


@pytest.mark.parametrize(("command", "code"), READ.items())
def test_command_that_reads_works_on_a_standby(command: str, code: int, here: Certjob) -> None:
    result = here(*command.split())

    assert result.returncode == code
    assert "read-only (" not in result.stderr
    assert result.stdout != "" or command == "alerts"
    assert (result.stderr == "") is (code == 0 and not command.startswith("preview"))
