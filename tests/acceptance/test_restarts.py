"""PostgreSQL restarts during a run: the run starts again and does the rest, or reports that the database is gone."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.database.connections import RESTART_PAUSES_SECONDS
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.mail.message import OutgoingMessage
from certjob.stopping import StopFlag
from tests.support.command_line import started
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.own_server import Cluster
from tests.support.portal_answers import hang
from tests.support.portal_server import PortalServer


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    """The URL of a database with three expired mentors and a coordinator, on a server that may be stopped."""
    with cluster.fresh_database(f"restart_{uuid4().hex[:12]}") as url:
        with database.connect(url) as connection:
            facts = Facts(connection)
            organisation = facts.organisation()
            facts.insert("coordinators", organisation_id=organisation, email="anna@example.org")
            for _ in range(3):
                facts.certified_mentor(organisation, TODAY - timedelta(days=1))
        yield url


def start_again(url: str, job: Callable[[Connection], object]) -> None:
    """Do a job as `certjob run` does, with short waits."""

    def start() -> None:
        with database.connect(url) as connection:
            job(connection)

    database.start_again_when_lost(start, stop=StopFlag(), pauses_seconds=(0.1, 0.1, 0.1))


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with database.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


@pytest.mark.parametrize("interrupted", ["push", "reminder", "digest"])
def test_restart_during_a_run_loses_nothing_and_repeats_no_mail(url: str, cluster: Cluster, interrupted: str) -> None:
    """The next start keeps the outcome of the second push or reminder, or of the digest, that was in flight."""
    sent: list[str] = []

    def on_push(number: int) -> None:
        if interrupted == "push" and number == 2:
            cluster.restart()

    def on_send(message: OutgoingMessage) -> None:
        sent.append(message.kind)
        if message.kind == interrupted and len(sent) in (2, 4):
            cluster.restart()

    portal, channel = FlakyPortal(on_push), CollectingChannel(on_send=on_send)

    start_again(url, lambda connection: night(connection, portal=portal, channel=channel))

    assert rows(url, "SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(3, 3)]
    assert len(portal.calls) == len(portal.visible) == 3
    assert sent == ["reminder", "reminder", "reminder", "digest"]
    assert rows(url, "SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 3)]
    assert rows(url, "SELECT DISTINCT status, maybe_sent FROM cert_notification_log") == [("sent", False)]
    assert rows(url, "SELECT outcome FROM job_runs ORDER BY started_at") == [(None,), ("ok",)]
    start_again(url, lambda connection: night(connection, TODAY + timedelta(days=1), portal=portal, channel=channel))
    assert len(sent) == 4, "no second digest about the same mentors"


@pytest.mark.parametrize("command", ["run", "deliver", "reconcile"])
def test_command_survives_a_restart_and_prints_nothing(
    url: str, cluster: Cluster, environment: dict[str, str], portal: PortalServer, tmp_path: Path, command: str
) -> None:
    """So cron sends no mail after an update of the database at three in the morning."""
    if command != "run":
        with database.connect(url) as connection:
            night(connection, deliver=False)
    portal.then(hang())

    environment |= {"CERTJOB_DATABASE_URL": url}
    with started(command, environment=environment, folder=tmp_path, restart_pause=0.2) as child:
        portal.wait_until(lambda: len(portal.requests) >= 1)
        cluster.restart()
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(portal.visible.values()) == [False, False, False]


END_ONE_SESSION = b"""
    CREATE SEQUENCE writes;
    CREATE FUNCTION end_one_session() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('writes') = 2 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER test BEFORE INSERT ON mentor_pauses FOR EACH ROW EXECUTE FUNCTION end_one_session();
"""


def test_review_that_lost_its_session_starts_again(url: str) -> None:
    """The session ends within the transaction, which stores nothing."""
    with database.connect(url) as connection:
        connection.execute(END_ONE_SESSION)
    portal = FlakyPortal()

    start_again(url, lambda connection: night(connection, portal=portal))

    assert portal.values == [False, False, False]
    assert rows(url, "SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(3, 3)]


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.AdminShutdown(),
        psycopg.errors.IdleInTransactionSessionTimeout(),
        psycopg.errors.TransactionTimeout(),
        psycopg.OperationalError("the connection was cut"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_job_that_loses_the_database_each_time_starts_four_times(error: Exception) -> None:
    tries = []

    def job() -> None:
        tries.append(1)
        raise error if len(tries) != 2 else DatabaseUnavailableError("the database cannot be reached")

    with pytest.raises(type(error)):
        database.start_again_when_lost(job, stop=StopFlag(), pauses_seconds=(0,) * len(RESTART_PAUSES_SECONDS))

    assert len(tries) == 4


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(psycopg.errors.LockNotAvailable(), id="lock timeout"),
        pytest.param(DatabaseUnavailableError("the database cannot be reached"), id="never reached"),
    ],
)
def test_only_a_lost_database_starts_a_job_again(error: Exception) -> None:
    tries = []

    def job() -> None:
        tries.append(1)
        raise error

    with pytest.raises(type(error)):
        database.start_again_when_lost(job, stop=StopFlag(), pauses_seconds=(0, 0))

    assert len(tries) == 1


def test_signal_ends_the_wait_for_the_database() -> None:
    stop = StopFlag()
    threading.Timer(0.3, stop.set).start()

    def job() -> None:
        raise psycopg.errors.AdminShutdown

    with pytest.raises(StoppedBySignalError):
        database.start_again_when_lost(job, stop=stop, pauses_seconds=(60,))


def test_transaction_has_a_time_limit_for_locks_and_statements(connection: Connection) -> None:
    """A statement_timeout of the administrator has precedence."""
    shown = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    with database.transaction(connection, lock_timeout_ms=500):
        assert connection.execute(shown).fetchone() == ("500ms", "10min")
    connection.execute("SET statement_timeout = '20min'")
    with database.transaction(connection, lock_timeout_ms=500):
        assert connection.execute(shown).fetchone() == ("500ms", "20min")
