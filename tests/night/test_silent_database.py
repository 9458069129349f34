"""A proxy that keeps the connection and forwards nothing more: nothing waits for it for ever."""

from pathlib import Path

import pytest

from certjob import database
from certjob.database import Connection, connections
from certjob.errors import DatabaseUnavailableError
from certjob.night import nightly
from certjob.stopping import StopFlag
from tests.support.command_line import assert_one_line, run_in_process, today
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
        database.hang_up_when_silent(connection)
        database.outlast_restarts(connection, stop=stop)
        with pytest.raises(DatabaseUnavailableError, match="does not answer any more"):
            nightly.run(
                connection,
                options=nightly.NightOptions(today=today()),
                delivery=delivery(deadline_seconds=1),
                stop=stop,
                progress=NoProgress(),
            )


@pytest.mark.parametrize(
    ("words", "statement"),
    [
        (("run",), b"certjob_migrations"),
        (("resync", "M1"), b"INSERT INTO job_runs"),
        (("alerts",), b"FROM attention"),
    ],
    ids=["before anything", "a resync", "a command that only looks"],
)
def test_every_command(
    bare_environment: dict[str, str],
    facts: Facts,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    statement: bytes,
) -> None:
    """A cron job that hangs for ever says nothing and is followed by the next one."""
    facts.mentor(facts.organisation(), member_no="M1")
    monkeypatch.setattr(connections, "LONGEST_SILENCE_SECONDS", 0.5)

    with StallingProxy(database_url, at=statement) as proxy:
        environment = bare_environment | {"CERTJOB_DATABASE_URL": proxy.url}
        result = run_in_process(*words, environment=environment, folder=tmp_path)

    assert_one_line(result, "does not answer any more", "run it again", code=1, command=f"certjob {words[0]}")


def test_a_server_that_comes_back_and_does_not_answer(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler opens a session although the server behind it is away."""
    for name in ("RESTART_PATIENCE_SECONDS", "CONNECT_SECONDS"):
        monkeypatch.setattr(connections, name, 1)
    with StallingProxy(database_url, at=b"SELECT 1") as proxy, database.connect(proxy.url) as ours:
        database.outlast_restarts(ours, stop=StopFlag())
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [ours.info.backend_pid])

        with pytest.raises(DatabaseUnavailableError, match="was not back after 1 s"):
            database.clock(ours)
