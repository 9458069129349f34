"""A proxy that keeps the connection and forwards nothing more: nothing waits for it for ever."""

import pytest

from certjob import database
from certjob.database import connections
from certjob.errors import DatabaseUnavailableError
from certjob.night import nightly
from certjob.stopping import StopFlag
from tests.support.command_line import today
from tests.support.facts import Facts
from tests.support.nights import NoProgress, delivery
from tests.support.stalling_proxy import StallingProxy


@pytest.mark.parametrize(
    "statement",
    [
        b"clock_timestamp",
        b"INSERT INTO job_runs",
        b"FOR NO KEY UPDATE",
        b"COMMIT",
        b"older_than_hour",
        b"UPDATE job_runs",
    ],
    ids=["the day", "the beginning", "a chunk", "a commit", "what is open", "the end"],
)
def test_before_in_and_after_the_review(
    facts: Facts, database_url: str, monkeypatch: pytest.MonkeyPatch, statement: bytes
) -> None:
    """The stages of the delivery have their own deadline; everything else has this one."""
    facts.certified_mentor(facts.organisation(), today())
    monkeypatch.setattr(connections, "LONGEST_SILENCE_SECONDS", 0.5)
    stop = StopFlag()
    with StallingProxy(database_url, at=statement) as proxy, database.connect(proxy.url) as connection:
        database.outlast_restarts(connection, stop=stop)
        with pytest.raises(DatabaseUnavailableError, match="does not answer any more"):
            nightly.run(
                connection,
                options=nightly.NightOptions(today=today()),
                delivery=delivery(deadline_seconds=1),
                stop=stop,
                progress=NoProgress(),
            )
