"""On a standby the commands that read work, and the commands that write say what to do."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from certjob import database
from certjob.cli import entry
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY, Facts
from tests.support.own_server import Cluster
from tests.support.portal_server import PortalServer

READ = (
    *("alerts", "check", "explain M1001", "forecast", "list", "organisation list", "organisation show hlf"),
    *("preview M1001 --threshold -1", "status", "reconcile --dry-run", "run --dry-run"),
)


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


def test_command_that_reads_works_on_a_standby(here: Certjob) -> None:
    """`check` reports the standby, and `status` that there was no run."""
    for command in READ:
        result = here(*command.split())
        assert result.returncode == {"check": 1, "status": 3}.get(command, 0), command
        assert "read-only (" not in result.stderr


def test_command_that_writes_asks_for_the_primary(here: Certjob, portal: PortalServer, tmp_path: Path) -> None:
    """It prints one line with the server's reason and the commands that work, and calls and mails nothing."""
    header = "organisation,member_no,email,kind,issued_on,expires_on"
    (tmp_path / "people.csv").write_text(f"{header}\nhlf,M1,m1@example.org,likeperson,2024-01-01,2026-01-01\n")

    results = {
        "run": here("run"),
        "deliver": here("deliver"),
        "reconcile": here("reconcile"),
        "resync": here("resync", "M1001"),
        "alerts": here("alerts", "--retry-all"),
        "load": here("load", "people.csv"),
        "organisation set": here("organisation", "set", "nord-lys"),
        "db prune": here("db", "prune", "--older-than", "3y"),
    }
    migrated = here("db", "migrate")

    assert_one_line(migrated, "the database is read-only; migrate on the primary", code=1, command="certjob db migrate")
    for name, result in results.items():
        said = assert_one_line(result, code=1, command=f"certjob {name}")
        assert "the database is read-only (cannot execute" in said
        assert "use the primary" in said
        assert entry.WORKS_READ_ONLY in said
    assert not list(tmp_path.glob("mail/new/*"))
    assert portal.requests == []
