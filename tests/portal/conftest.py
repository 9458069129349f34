"""What the portal's tests share: the stand-in of the Edge Function, a scene with it, and another run's connection."""

from collections.abc import Iterator

import pytest

from certjob import database
from certjob.database import Connection
from tests.support.portal_server import PortalServer
from tests.support.stages import PortalScene


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server
        server.release()


@pytest.fixture
def scene(connection: Connection, portal: PortalServer) -> PortalScene:
    return PortalScene(connection, portal)


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection
