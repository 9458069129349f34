"""A proxy that keeps the connection and forwards nothing more: nothing waits for it for ever."""

import pytest

from certjob import database
from certjob.database import Connection, connections
from certjob.errors import DatabaseUnavailableError
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, today
from tests.support.facts import Facts
from tests.support.proxy import StallingProxy


@pytest.mark.parametrize(
    ("command", "statement"),
    [
        pytest.param("run", b"certjob.migrations", id="before anything"),
        pytest.param("run", b"clock_timestamp", id="the day"),
        pytest.param("run", b"INSERT INTO job_runs", id="the beginning"),
        pytest.param("run", b"FOR NO KEY UPDATE", id="a chunk"),
        pytest.param("run", b"COMMIT", id="a commit"),
        pytest.param("run", b"older_than_hour", id="what is open"),
        pytest.param("run", b"UPDATE job_runs", id="the end"),
        pytest.param("resync", b"INSERT INTO job_runs", id="a resync"),
        pytest.param("alerts", b"FROM attention", id="a command that only looks"),
    ],
)
def test_every_command_says_so_and_ends(
    here: Certjob, facts: Facts, database_url: str, monkeypatch: pytest.MonkeyPatch, command: str, statement: bytes
) -> None:
    """A cron job that hangs for ever says nothing and is followed by the next one."""
    facts.certified_mentor(facts.organisation(), today(), member_no="M1")
    monkeypatch.setattr(connections, "LONGEST_SILENCE_SECONDS", 0.5)

    with StallingProxy(database_url, at=statement) as proxy:
        result = here(command, *(["M1"] if command == "resync" else []), CERTJOB_DATABASE_URL=proxy.url)

    words = ("does not answer any more", "run it again")
    assert_one_line(result, *words, code=1, command=f"certjob {command}")


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
