"""The world around the command: a portal and a mail folder, and an environment that names them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.cluster import Cluster
from tests.support.own_server import data_folder
from tests.support.portal_server import PortalServer


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """It shows nobody, and does what it is asked."""
    with PortalServer() as server:
        yield server


@pytest.fixture
def ways_out(portal: PortalServer, tmp_path: Path) -> dict[str, str]:
    """The settings that lead to the portal and to the Maildir ``mail``."""
    return {
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": portal.key,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
        "CERTJOB_MAIL_FROM": "HLF <post@hlf.example>",
    }


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str, ways_out: dict[str, str]) -> dict[str, str]:
    """That of a process on the test's database, as the owner of its tables."""
    return bare_environment | ways_out | {"CERTJOB_DATABASE_URL": database_url}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL of these files' own: one that may be stopped with ``immediate``."""
    with data_folder("acceptance") as folder, Cluster(folder) as running:
        yield running
