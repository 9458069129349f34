"""On a standby the commands that read work, and the commands that write say what to do."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from certjob import database
from certjob.cli import entry
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY, Facts
from tests.support.own_server import Cluster
from tests.support.portal_server import PortalServer


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


@pytest.mark.parametrize(
    "command",
    [
        *("alerts", "changes", "explain M1001", "list", "organisation show", "organisation show hlf"),
        *("preview M1001 --threshold -1", "reconcile --dry-run", "run --dry-run"),
    ],
)
def test_command_that_reads_works_on_a_standby(here: Certjob, command: str) -> None:
    assert here(*command.split()).returncode == 0


@pytest.mark.parametrize(
    "command", ["run", "deliver", "reconcile", "resync M1001", "pause M1001 --because x", "alerts --retry-all"]
)
def test_command_that_writes_asks_for_the_primary(here: Certjob, portal: PortalServer, command: str) -> None:
    """It prints one line with the server's reason and the commands that work, and calls no one."""
    result = here(*command.split())

    reason = "the database is read-only (cannot execute"
    name = command.split(maxsplit=1)[0]
    assert_one_line(result, reason, "use the primary", entry.WORKS_READ_ONLY, code=1, command=f"certjob {name}")
    assert portal.requests == []
    said = "the database is read-only; migrate on the primary"
    assert_one_line(here("db", "migrate"), said, code=1, command="certjob db migrate")
