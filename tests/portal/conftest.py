"""What the portal's tests share: a scene with the stand-in of the Edge Function."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from certjob.database import Connection
from tests.support.portal_server import PortalServer
from tests.support.stages import PortalScene


@pytest.fixture
def scene(connection: Connection, database_url: str, portal: PortalServer) -> Iterator[PortalScene]:
    with ExitStack() as sessions:
        yield PortalScene(connection, portal, url=database_url, sessions=sessions)
