"""A proxy that keeps the connection and forwards nothing more: no delivery waits for it for ever."""

import pytest

from certjob import database
from certjob.database import connections
from certjob.errors import DatabaseUnavailableError
from certjob.night import nightly
from certjob.stopping import StopFlag
from tests.support.command_line import today
from tests.support.nights import NoProgress, delivery
from tests.support.stalling_proxy import StallingProxy


@pytest.mark.parametrize(
    "statement",
    [b"clock_timestamp", b"INSERT INTO job_runs", b"older_than_hour", b"UPDATE job_runs"],
    ids=["the day", "the beginning", "what is open", "the end"],
)
def test_before_and_after_the_stages(database_url: str, monkeypatch: pytest.MonkeyPatch, statement: bytes) -> None:
    """The stages have their own deadline; what comes before and after them has one as well."""
    monkeypatch.setattr(connections, "LONGEST_SILENCE_SECONDS", 0.5)
    stop = StopFlag()
    with StallingProxy(database_url, at=statement) as proxy, database.connect(proxy.url) as connection:
        database.outlast_restarts(connection, stop=stop)
        with pytest.raises(DatabaseUnavailableError, match="does not answer any more"):
            nightly.deliver(
                connection,
                today=today(),
                delivery=delivery(deadline_seconds=1),
                stop=stop,
                progress=NoProgress(),
            )
