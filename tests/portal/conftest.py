"""What the portal's tests share: the stand-in of the Edge Function, and the connection of another run."""

from collections.abc import Iterator

import pytest

from certjob import database
from certjob.database import Connection
from tests.support.portal_server import PortalServer


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server
        server.release()


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection
