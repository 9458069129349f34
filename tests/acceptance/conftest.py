"""The world around the command: a portal and a mail folder, and an environment that names them."""

from collections.abc import Iterator

import pytest

from tests.support.own_server import Cluster, data_folder


@pytest.fixture
def environment(environment: dict[str, str], ways_out: dict[str, str]) -> dict[str, str]:
    """That of a process on the test's database, as the owner of its tables, with both ways out."""
    return environment | ways_out


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL of these files' own: one that may be stopped with ``immediate``."""
    with data_folder("acceptance") as folder, Cluster(folder) as running:
        yield running
