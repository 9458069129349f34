"""PostgreSQL restarts during a run: the run starts again and does the rest, or reports that the database is gone."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, connections
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.jobs.report import RunReport
from certjob.mail.message import OutgoingMessage
from certjob.stopping import StopFlag
from tests.support.command_line import started
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.own_server import Cluster
from tests.support.portal_answers import hang
from tests.support.portal_server import PortalServer

Result = TypeVar("Result")


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    """The URL of a database on a server that may be stopped."""
    with cluster.fresh_database(f"restart_{uuid4().hex[:12]}") as url:
        yield url


def start_again(url: str, job: Callable[[Connection], Result]) -> Result:
    """Do a job as `certjob run` does, with short waits."""

    def start() -> Result:
        with database.connect(url) as connection:
            return job(connection)

    return database.start_again_when_lost(start, stop=StopFlag(), pauses_seconds=(0.1, 0.1, 0.1))


def add_expired_mentors(url: str, count: int) -> None:
    with database.connect(url) as connection:
        facts = Facts(connection)
        organisation = facts.organisation()
        facts.insert("coordinators", organisation_id=organisation, email="anna@example.org")
        for _ in range(count):
            facts.certified_mentor(organisation, TODAY - timedelta(days=1))


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with database.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


@pytest.mark.parametrize("interrupted", ["push", "reminder", "digest"])
def test_restart_during_a_run_loses_nothing_and_repeats_no_mail(url: str, cluster: Cluster, interrupted: str) -> None:
    """The next start keeps the outcome of the second push or reminder, or of the digest, that was in flight."""
    add_expired_mentors(url, 3)
    sent: list[str] = []

    def on_push(number: int) -> None:
        if interrupted == "push" and number == 2:
            cluster.restart()

    def on_send(message: OutgoingMessage) -> None:
        sent.append(message.kind)
        if message.kind == interrupted and len(sent) in (2, 4):
            cluster.restart()

    portal, channel = FlakyPortal(on_push), CollectingChannel(on_send=on_send)

    def run(connection: Connection) -> RunReport:
        return night(connection, portal=portal, channel=channel)

    assert start_again(url, run).outcome == "ok"

    assert rows(url, "SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(3, 3)]
    assert len(portal.calls) == len(portal.visible) == 3
    assert sent == ["reminder", "reminder", "reminder", "digest"]
    assert rows(url, "SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 3)]
    assert rows(url, "SELECT DISTINCT status, maybe_sent FROM cert_notification_log") == [("sent", False)]
    assert rows(url, "SELECT outcome FROM job_runs ORDER BY started_at") == [(None,), ("ok",)]
    start_again(url, lambda connection: night(connection, TODAY + timedelta(days=1), portal=portal, channel=channel))
    assert len(sent) == 4, "no second digest about the same mentors"


def test_command_survives_a_restart_and_prints_nothing(
    url: str, cluster: Cluster, environment: dict[str, str], portal: PortalServer, tmp_path: Path
) -> None:
    """So cron sends no mail after an update of the database at three in the morning."""
    add_expired_mentors(url, 2)
    portal.then(hang())

    environment |= {"CERTJOB_DATABASE_URL": url}
    with started("run", environment=environment, folder=tmp_path, restart_pause=0.2) as child:
        portal.wait_until(lambda: len(portal.requests) >= 1)
        cluster.restart()
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len({request.contact_id for request in portal.requests}) == 2
    assert rows(url, "SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 2)]


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
    add_expired_mentors(url, 3)
    with database.connect(url) as connection:
        connection.execute(END_ONE_SESSION)
    portal = FlakyPortal()

    start_again(url, lambda connection: night(connection, portal=portal))

    assert portal.values == [False, False, False]
    assert rows(url, "SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(3, 3)]


def end_session(connection: Connection) -> None:
    """End this session on the server, as an administrator does."""
    connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def test_signal_ends_the_wait_for_the_database(url: str) -> None:
    stop = StopFlag()
    threading.Timer(0.3, stop.set).start()

    with database.connect(url) as connection, pytest.raises(StoppedBySignalError):
        database.start_again_when_lost(lambda: end_session(connection), stop=stop, pauses_seconds=(60,))


def test_every_transaction_of_a_night_has_time_limits(url: str) -> None:
    """A statement_timeout of the administrator has precedence."""
    shown = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    with database.connect(url) as connection:
        with database.transaction(connection, lock_timeout_ms=500):
            assert connection.execute(shown).fetchone() == ("500ms", "10min")
        connection.execute("SET statement_timeout = '20min'")
        with database.transaction(connection, lock_timeout_ms=500):
            assert connection.execute(shown).fetchone() == ("500ms", "20min")


@pytest.mark.parametrize(
    "lost",
    [
        psycopg.errors.AdminShutdown,
        psycopg.errors.CrashShutdown,
        psycopg.errors.IdleInTransactionSessionTimeout,
        psycopg.errors.TransactionTimeout,
        psycopg.OperationalError,  # the connection was cut
    ],
)
def test_job_starts_again_after_each_way_to_lose_a_session(lost: type[Exception]) -> None:
    outcomes = iter([lost(), DatabaseUnavailableError("the database cannot be reached"), None])

    def job() -> str:
        error = next(outcomes)
        if error is not None:
            raise error
        return "done"

    assert database.start_again_when_lost(job, stop=StopFlag(), pauses_seconds=(0, 0, 0)) == "done"


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


def test_job_that_loses_the_database_each_time_starts_four_times(url: str) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        end_session(connection)

    with pytest.raises(psycopg.errors.AdminShutdown):
        start_again(url, work)

    assert len(tries) == 1 + len(connections.RESTART_PAUSES_SECONDS) == 4
