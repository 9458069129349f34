"""The settings of the command under test, and a PostgreSQL that a test may stop."""

from collections.abc import Iterator

import pytest

from tests.support.own_server import Cluster, data_folder


@pytest.fixture
def environment(environment: dict[str, str], delivery_settings: dict[str, str]) -> dict[str, str]:
    """The settings of a database, a portal over real HTTP, and a Maildir."""
    return environment | delivery_settings


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL for these files, which a test may stop with ``immediate``."""
    with data_folder("acceptance") as folder, Cluster(folder) as running:
        yield running
