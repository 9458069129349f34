"""What tests of mail share."""

from collections.abc import Iterator

import pytest

from certjob import database
from certjob.database import Connection
from certjob.mail import stage
from certjob.outbox.retry import constant


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries of a channel that is down, without the seconds between them."""
    monkeypatch.setattr(stage, "exponential", lambda **_: constant(seconds=0))


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection
