"""A database that is restarted in mid-run: the job starts again and does the rest, or reports that it is gone."""

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


def start_again(url: str, job: Callable[[Connection], Result], *, stop: StopFlag | None = None) -> Result:
    """Do a job as `certjob run` does, without the waits."""

    def start() -> Result:
        with database.connect(url) as connection:
            return job(connection)

    return database.start_again_when_lost(start, stop=stop or StopFlag(), pauses_seconds=(0.1, 0.1, 0.1))


def add_people(url: str, number: int) -> None:
    """Mentors whose certificates ended yesterday, and a coordinator."""
    with database.connect(url) as connection:
        people = Facts(connection)
        organisation = people.organisation()
        people.insert("coordinators", organisation_id=organisation, email="anna@example.org")
        for _ in range(number):
            people.certified_mentor(organisation, TODAY - timedelta(days=1))


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with database.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


class Strikes:
    """A portal, a channel and a reader of facts during whose calls the server is restarted."""

    def __init__(self, restart: Callable[[], object], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._restart, self._where = restart, where.split()
        self._read = reading.read
        self.sent: list[str] = []
        self.portal = FlakyPortal(lambda number: self.strike("push") if number == 2 else None)
        self.channel = CollectingChannel(on_send=self._during_mail)
        monkeypatch.setattr(reading, "read", self._during_review)
        monkeypatch.setattr(certification, "CHUNK_SIZE", 5)
        self._chunks = 0

    def strike(self, place: str) -> None:
        if place in self._where:
            self._where.remove(place)
            self._restart()

    def _during_review(self, connection: Connection, ids: Any, *, lock: bool) -> Any:
        found = self._read(connection, ids, lock=lock)
        if lock:  # a mail reads its mentor, too
            self._chunks += 1
            if self._chunks == 2:
                self.strike("chunk")
        return found

    def _during_mail(self, message: OutgoingMessage) -> None:
        self.sent.append(message.kind)
        if self.sent[-2:] == ["reminder"] * 2:
            self.strike("mail")
        if message.kind == "digest":
            self.strike("digest")

    def run(self, connection: Connection, *, day_after: int = 0) -> RunReport:
        return night(connection, TODAY + timedelta(days=day_after), portal=self.portal, channel=self.channel)


@pytest.mark.parametrize("where", ["chunk", "push", "mail", "digest", "chunk push mail"])
def test_a_restart_in_mid_run_loses_nothing_and_repeats_no_mail(
    url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A chunk is reviewed again; the outcome of a call or a mail in flight is kept."""
    add_people(url, 12)
    strikes = Strikes(cluster.restart, where, monkeypatch)

    report = start_again(url, strikes.run).to_document()

    assert report["outcome"] == "ok"
    assert rows(url, "SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(12, 12)]
    assert len(strikes.portal.calls) == len(strikes.portal.visible) == 12
    assert strikes.sent == ["reminder"] * 12 + ["digest"]
    assert rows(url, "SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 12)]
    mails = "SELECT status, maybe_sent, count(*) FROM cert_notification_log GROUP BY 1, 2"
    assert rows(url, mails) == [("sent", False, 12)]
    outcomes = [outcome for (outcome,) in rows(url, "SELECT outcome FROM job_runs ORDER BY started_at")]
    assert outcomes == [None] * len(where.split()) + ["ok"]
    start_again(url, lambda connection: strikes.run(connection, day_after=1))
    assert len(strikes.sent) == 13, "what a digest has told is not told again"


def test_the_installed_command_survives_a_restart_without_a_word(
    url: str, cluster: Cluster, environment: dict[str, str], portal: PortalServer, tmp_path: Path
) -> None:
    """cron mails nothing about a database that was updated at three in the morning."""
    add_people(url, 2)
    portal.then(hang())

    settings = environment | {"CERTJOB_DATABASE_URL": url}
    with started("run", environment=settings, folder=tmp_path) as child:
        portal.wait_until(lambda: len(portal.requests) >= 1)
        cluster.restart()
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len({request.contact_id for request in portal.requests}) == 2
    assert rows(url, "SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 2)]


def test_a_server_that_stays_away_ends_the_job_and_the_next_one_does_the_rest(
    url: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed is kept."""
    add_people(url, 12)
    strikes = Strikes(cluster.stop, "chunk", monkeypatch)
    try:
        with pytest.raises(DatabaseUnavailableError, match="cannot be reached") as caught:
            start_again(url, strikes.run)
    finally:
        cluster.start()

    assert caught.value.exit_code == 1
    assert rows(url, "SELECT count(*) FROM mentor_pauses") == [(5,)]
    start_again(url, strikes.run)
    assert rows(url, "SELECT count(*) FROM mentor_pauses") == [(12,)]
    assert len(strikes.sent) == 13


def test_a_signal_ends_the_wait_for_the_server(url: str) -> None:
    stop = StopFlag()
    threading.Timer(0.3, stop.set).start()

    with database.connect(url) as connection, pytest.raises(StoppedBySignalError):
        database.start_again_when_lost(lambda: terminate(connection), stop=stop, pauses_seconds=(60,))


def terminate(connection: Connection) -> None:
    """The server ends this session, as at a shutdown."""
    connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def test_no_statement_of_a_night_goes_on_for_ever(url: str) -> None:
    """The limits are the transaction's own, and one that the administrator has set stays."""
    shown = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    with database.connect(url) as connection:
        for of_the_session, of_the_night in (("0", "10min"), ("20min", "20min")):
            connection.execute(f"SET statement_timeout = '{of_the_session}'".encode())
            with database.transaction(connection, lock_timeout_ms=500):
                assert connection.execute(shown).fetchone() == ("500ms", of_the_night)
            assert connection.execute(shown).fetchone() == ("0", of_the_session)


@pytest.mark.parametrize("setting", ["", "idle_in_transaction_session_timeout", "transaction_timeout"])
def test_a_session_that_the_server_ended_is_started_again(url: str, setting: str) -> None:
    """By an administrator or by a timeout of the server; nothing of the cut-off transaction stays."""
    tries: list[int] = []

    def work(connection: Connection) -> None:
        if setting == "transaction_timeout" and connection.info.server_version < 170000:
            pytest.skip("PostgreSQL 17 brought it")
        with database.transaction(connection):
            tries.append(connection.info.backend_pid)
            connection.execute("CREATE TABLE once (id int)")
            if len(tries) == 1:
                kill = "SELECT pg_terminate_backend(pg_backend_pid())"
                connection.execute((f"SET LOCAL {setting} = '50ms'" if setting else kill).encode())
                assert select.select([connection.fileno()], [], [], 20)[0]
                connection.execute("SELECT 1")

    start_again(url, work)

    assert len(set(tries)) == 2
    assert rows(url, "SELECT to_regclass('once') IS NOT NULL") == [(True,)]


def test_only_a_lost_database_starts_a_job_again(url: str, cluster: Cluster) -> None:
    """Not a statement that took too long, a locked table, a server that was never there, or a changed password."""
    refused = ConfigurationError("password authentication failed")
    for first, then in (
        (psycopg.errors.QueryCanceled(), None),
        (psycopg.errors.LockNotAvailable(), None),
        (DatabaseUnavailableError("the database cannot be reached"), None),
        (psycopg.errors.AdminShutdown(), refused),
        (psycopg.errors.AdminShutdown(), psycopg.errors.InsufficientPrivilege()),
    ):
        raised = iter([first, then])

        def job(errors: Iterator[Exception | None] = raised) -> None:
            error = next(errors)
            assert error is not None, "it was started again"
            raise error

        with pytest.raises(type(then or first)):
            database.start_again_when_lost(job, stop=StopFlag(), pauses_seconds=(0, 0))


def test_a_job_that_brings_the_server_down_each_time_is_given_up(url: str) -> None:
    """After three more starts."""
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        terminate(connection)

    with pytest.raises(psycopg.errors.AdminShutdown):
        start_again(url, work)

    assert len(tries) == 1 + len(connections.RESTART_PAUSES_SECONDS) == 4
