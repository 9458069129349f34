"""What the nights' tests share: the stand-in of the Edge Function."""

from collections.abc import Iterator

import pytest

from tests.support.portal_server import PortalServer


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server
        server.release()
