"""A replica: what only looks works on it; what writes says what this server is, and what to do."""

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

WRITES = (
    *("run", "deliver", "reconcile", "resync M1001", "alerts --retry-all", "db prune --older-than 3y"),
    *("load people.csv", "organisation set nord-lys", "bounces"),
)
LOOKS = {
    "alerts": 0,
    "alerts --json": 0,
    "check": 1,  # which says that it is a standby
    "explain M1001": 0,
    "forecast": 0,
    "list --csv": 0,
    "organisation list": 0,
    "organisation show --json hlf": 0,
    "preview M1001 --threshold -1": 0,
    "reconcile --dry-run": 0,
    "run --dry-run": 0,
    "status": 3,  # no night has run here
}
"""With the exit code of each."""
ELSEWHERE = {
    "acknowledge": "says first that there is no such alert",
    "db migrate": "says where to go instead",
    "edge-function": "needs no database",
}


@pytest.fixture(scope="module")
def standby(cluster: Cluster) -> Iterator[str]:
    """The URL of a migrated database with a mentor, on a hot standby: a server in recovery that answers questions."""
    signal = cluster.folder / "postgresql" / "standby.signal"
    with cluster.fresh_database("standby") as url:
        with database.connect(url) as connection:
            people = Facts(connection)
            people.certified_mentor(people.organisation(), TODAY - timedelta(days=1))
        cluster.stop()
        signal.touch()
        cluster.start()
        yield url
        signal.unlink()
        cluster.restart()


@pytest.fixture
def environment(environment: dict[str, str], standby: str) -> dict[str, str]:
    return environment | {"CERTJOB_DATABASE_URL": standby}


def words_of(command: str) -> str:
    """The command without its arguments: `db prune`."""
    return " ".join(itertools.takewhile(lambda word: word.isalpha() and word.islower(), command.split()))


def test_the_line_names_what_works_here() -> None:
    """Every command there is, by what the two tests below find out about it."""
    always, dry = entry.WORKS_READ_ONLY.removeprefix("What works here: ").split(", and with --dry-run ")
    dry_commands = {words_of(command) for command in LOOKS if "--dry-run" in command}

    named = {words_of(command) for command in (*WRITES, *LOOKS)} | ELSEWHERE.keys()
    assert named == {name.removeprefix("certjob ") for name in commands()}
    assert always.split(", ") == sorted({words_of(command) for command in LOOKS if "--dry-run" not in command})
    assert dry.replace(" and ", ", ").split(", ") == sorted(dry_commands)


@pytest.mark.parametrize("command", [*WRITES, "db migrate"])
def test_what_writes_says_that_this_is_no_primary(
    command: str, here: Certjob, portal: PortalServer, tmp_path: Path
) -> None:
    """Exit 1, one line, the server's reason and the next step; nothing was called or mailed."""
    header = "organisation,member_no,email,kind,issued_on,expires_on"
    (tmp_path / "people.csv").write_text(f"{header}\nhlf,M1,m1@example.org,likeperson,2024-01-01,2026-01-01\n")
    report = postfix("<certjob-reminder-1-0123abcd@example.org>", "m1@example.org")
    phrases = ["the database is read-only (cannot execute", "use the primary", entry.WORKS_READ_ONLY]
    if command == "db migrate":
        phrases = ["the database is read-only; migrate on the primary"]
    if command == "bounces":
        phrases = ["the report was not saved (ReadOnlySqlTransaction)"]

    result = here(*command.split(), given=report)

    assert_one_line(result, *phrases, code=75 if command == "bounces" else 1, command=f"certjob {words_of(command)}")
    assert not list(tmp_path.glob("mail/new/*"))
    assert portal.requests == []


@pytest.mark.parametrize(("command", "code"), LOOKS.items())
def test_what_only_looks_works_on_it(command: str, code: int, here: Certjob) -> None:
    """A replica is the right place for that."""
    result = here(*command.split())

    assert result.returncode == code
    assert "read-only (" not in result.stderr
    assert result.stdout != "" or command == "alerts"
    assert (result.stderr == "") is (code == 0 and not command.startswith("preview"))
