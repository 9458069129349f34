"""What the portal's tests share: the stand-in of the Edge Function, and a scene with it."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from certjob.database import Connection
from tests.support.portal_server import PortalServer
from tests.support.stages import PortalScene


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server
        server.release()


@pytest.fixture
def scene(connection: Connection, database_url: str, portal: PortalServer) -> Iterator[PortalScene]:
    with ExitStack() as sessions:
        yield PortalScene(connection, portal, url=database_url, sessions=sessions)
