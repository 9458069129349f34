"""PostgreSQL restarts during a run: the run starts again and does the rest, or reports that the database is gone."""

import select
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
from certjob.errors import ConfigurationError, DatabaseUnavailableError, StoppedBySignalError
from certjob.facts import reading
from certjob.jobs.report import RunReport
from certjob.mail.message import OutgoingMessage
from certjob.review import certification
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


class InterruptedNight:
    """A night whose second chunk, second push, second reminder or digest calls ``interrupt``, each once."""

    def __init__(self, interrupt: Callable[[], object], places: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._interrupt, self._places = interrupt, places.split()
        self._read, self._chunks = reading.read, 0
        self.sent: list[str] = []
        self.portal = FlakyPortal(lambda number: self._reach("push") if number == 2 else None)
        self.channel = CollectingChannel(on_send=self._send)
        monkeypatch.setattr(reading, "read", self._read_chunk)
        monkeypatch.setattr(certification, "CHUNK_SIZE", 5)

    def _reach(self, place: str) -> None:
        if place in self._places:
            self._places.remove(place)
            self._interrupt()

    def _read_chunk(self, connection: Connection, ids: Any, *, lock: bool) -> Any:
        found = self._read(connection, ids, lock=lock)
        self._chunks += lock  # a mail reads its mentor without a lock
        if lock and self._chunks == 2:
            self._reach("chunk")
        return found

    def _send(self, message: OutgoingMessage) -> None:
        self.sent.append(message.kind)
        if self.sent[-2:] == ["reminder"] * 2:
            self._reach("mail")
        if message.kind == "digest":
            self._reach("digest")

    def run(self, connection: Connection, *, days_later: int = 0) -> RunReport:
        return night(connection, TODAY + timedelta(days=days_later), portal=self.portal, channel=self.channel)


@pytest.mark.parametrize("places", ["chunk", "push", "mail", "digest", "chunk push mail"])
def test_restart_during_a_run_loses_nothing_and_repeats_no_mail(
    url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, places: str
) -> None:
    """The run reviews the chunk again, and keeps the outcome of a call or a mail in flight."""
    add_expired_mentors(url, 12)
    interrupted = InterruptedNight(cluster.restart, places, monkeypatch)

    report = start_again(url, interrupted.run).to_document()

    assert report["outcome"] == "ok"
    assert rows(url, "SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(12, 12)]
    assert len(interrupted.portal.calls) == len(interrupted.portal.visible) == 12
    assert interrupted.sent == ["reminder"] * 12 + ["digest"]
    assert rows(url, "SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 12)]
    mails = "SELECT status, maybe_sent, count(*) FROM cert_notification_log GROUP BY 1, 2"
    assert rows(url, mails) == [("sent", False, 12)]
    outcomes = [outcome for (outcome,) in rows(url, "SELECT outcome FROM job_runs ORDER BY started_at")]
    assert outcomes == [None] * len(places.split()) + ["ok"]
    start_again(url, lambda connection: interrupted.run(connection, days_later=1))
    assert len(interrupted.sent) == 13, "no second digest about the same mentors"


def test_command_survives_a_restart_and_prints_nothing(
    url: str, cluster: Cluster, environment: dict[str, str], portal: PortalServer, tmp_path: Path
) -> None:
    """So cron sends no mail after an update of the database at three in the morning."""
    add_expired_mentors(url, 2)
    portal.then(hang())

    with started("run", environment=environment | {"CERTJOB_DATABASE_URL": url}, folder=tmp_path) as child:
        portal.wait_until(lambda: len(portal.requests) >= 1)
        cluster.restart()
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len({request.contact_id for request in portal.requests}) == 2
    assert rows(url, "SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 2)]


def test_run_after_a_database_that_stayed_down_does_the_rest(
    url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed chunk is kept."""
    add_expired_mentors(url, 12)
    interrupted = InterruptedNight(cluster.stop, "chunk", monkeypatch)
    try:
        with pytest.raises(DatabaseUnavailableError, match="cannot be reached") as caught:
            start_again(url, interrupted.run)
    finally:
        cluster.start()

    assert caught.value.exit_code == 1
    assert rows(url, "SELECT count(*) FROM mentor_pauses") == [(5,)]
    start_again(url, interrupted.run)
    assert rows(url, "SELECT count(*) FROM mentor_pauses") == [(12,)]
    assert len(interrupted.sent) == 13


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
        for of_the_session, of_the_night in (("0", "10min"), ("20min", "20min")):
            connection.execute(f"SET statement_timeout = '{of_the_session}'".encode())
            with database.transaction(connection, lock_timeout_ms=500):
                assert connection.execute(shown).fetchone() == ("500ms", of_the_night)
            assert connection.execute(shown).fetchone() == ("0", of_the_session)


@pytest.mark.parametrize("timeout", ["idle_in_transaction_session_timeout", "transaction_timeout"])
def test_session_that_a_timeout_of_the_server_ended_starts_again(url: str, timeout: str) -> None:
    """The server rolls its transaction back."""
    tries: list[int] = []

    def work(connection: Connection) -> None:
        if timeout == "transaction_timeout" and connection.info.server_version < 170000:
            pytest.skip("PostgreSQL 17 is the first version with it")
        with database.transaction(connection):
            tries.append(connection.info.backend_pid)
            connection.execute("CREATE TABLE once (id int)")
            if len(tries) == 1:
                connection.execute(f"SET LOCAL {timeout} = '50ms'".encode())
                assert select.select([connection.fileno()], [], [], 20)[0]
                connection.execute("SELECT 1")

    start_again(url, work)

    assert len(set(tries)) == 2
    assert rows(url, "SELECT to_regclass('once') IS NOT NULL") == [(True,)]


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(psycopg.errors.QueryCanceled(), None, id="statement timeout"),
        pytest.param(psycopg.errors.LockNotAvailable(), None, id="lock timeout"),
        pytest.param(DatabaseUnavailableError("the database cannot be reached"), None, id="never reached"),
        pytest.param(psycopg.errors.AdminShutdown(), ConfigurationError("wrong"), id="lost, then a wrong password"),
        pytest.param(psycopg.errors.AdminShutdown(), psycopg.errors.InsufficientPrivilege(), id="lost, then no right"),
    ],
)
def test_only_a_lost_database_starts_a_job_again(first: Exception, then: Exception | None) -> None:
    errors = iter([first, then])

    def job() -> None:
        error = next(errors)
        assert error is not None, "it started again"
        raise error

    with pytest.raises(type(then or first)):
        database.start_again_when_lost(job, stop=StopFlag(), pauses_seconds=(0, 0))


def test_job_that_stops_the_database_each_time_starts_four_times(url: str) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        end_session(connection)

    with pytest.raises(psycopg.errors.AdminShutdown):
        start_again(url, work)

    assert len(tries) == 1 + len(connections.RESTART_PAUSES_SECONDS) == 4
