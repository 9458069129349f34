"""A database that is restarted in mid-run: the run waits for it and goes on where it was, or says that it is gone."""

import select
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, connections, outlast_restarts, repeated
from certjob.database.connections import LastingConnection
from certjob.errors import ConfigurationError, DatabaseUnavailableError, StoppedBySignalError
from certjob.facts import reading
from certjob.mail.message import OutgoingMessage
from certjob.review.certification import CertificationManagementService
from certjob.stopping import StopFlag
from tests.chaos.cluster import Cluster
from tests.support.command_line import started
from tests.support.facts import TODAY, Facts
from tests.support.intents import DisturbedPortal
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.own_server import data_folder
from tests.support.portal_answers import hang
from tests.support.portal_server import PortalServer

ENDED = TODAY - timedelta(days=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL of this file's own: it is stopped with ``immediate``."""
    with data_folder("restarts") as folder, Cluster(folder) as running:
        yield running


@pytest.fixture
def own_database(cluster: Cluster) -> Iterator[str]:
    """The URL of a fresh database on it."""
    name = f"restart_{uuid4().hex[:12]}"
    with cluster.fresh_database(name):
        yield cluster.url(name)


@pytest.fixture
def lasting(own_database: str) -> Iterator[LastingConnection]:
    """A connection as `certjob run` has it."""
    with database.connect(own_database) as connection:
        outlast_restarts(connection, stop=StopFlag())
        yield connection


class TestNights:
    """Stopped with `immediate` in the middle, and started again."""

    @staticmethod
    def people(connection: Connection, number: int) -> Facts:
        people = Facts(connection)
        organisation = people.organisation()
        for _ in range(number):
            people.certified_mentor(organisation, ENDED)
        return people

    def test_a_chunk_that_was_cut_off_is_done_again_and_each_mentor_once(
        self, lasting: LastingConnection, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between the lock and the write; the transaction is gone, and its locks."""
        people = self.people(lasting, 12)
        read, chunks = reading.read, []

        def read_and_strike(connection: Connection, ids: Any, *, lock: bool) -> Any:
            found = read(connection, ids, lock=lock)
            if lock:  # a mail reads its mentor, too
                chunks.append(len(ids))
            if len(chunks) == 2:
                cluster.restart()
            return found

        monkeypatch.setattr(reading, "read", read_and_strike)
        defaults = CertificationManagementService.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "chunk_size", 5)
        portal, channel = FlakyPortal(), CollectingChannel()

        report = night(lasting, portal=portal, channel=channel)

        assert chunks == [5, 5, 5, 2]
        mentors = report.to_document()["mentors"]
        assert (mentors["reviewed"], mentors["paused"], mentors["skipped"]) == (12, 12, 0)
        assert people.rows("SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(12, 12)]
        assert (len(portal.calls), len(channel.sent), lasting.restarts) == (12, 12, 1)
        assert people.rows("SELECT outcome FROM job_runs") == [("ok",)]

    def test_a_push_whose_confirmation_met_a_restart_is_noted_and_not_repeated(
        self, lasting: LastingConnection, cluster: Cluster
    ) -> None:
        """The answer is kept until it is committed: nobody waits for a lease to run out."""
        people = self.people(lasting, 3)
        portal = DisturbedPortal(lambda number: cluster.restart() if number == 2 else None)

        report = night(lasting, portal=portal, channel=CollectingChannel())

        assert len(portal.calls) == 3
        assert people.rows("SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 3)]
        assert report.to_document()["portal"]["delivered"] == 3

    def test_a_mail_that_went_out_during_a_restart_is_noted_and_not_repeated(
        self, lasting: LastingConnection, cluster: Cluster
    ) -> None:
        """Without the wait it would be unknown, and sent a second time."""
        people = self.people(lasting, 3)
        sent: list[OutgoingMessage] = []

        def strike(message: OutgoingMessage) -> None:
            sent.append(message)
            if len(sent) == 2:
                cluster.restart()

        report = night(lasting, portal=FlakyPortal(), channel=CollectingChannel(on_send=strike))

        assert len(sent) == 3
        assert people.rows("SELECT status, maybe_sent, count(*) FROM cert_notification_log GROUP BY 1, 2") == [
            ("sent", False, 3)
        ]
        assert report.to_document()["reminders"]["sent"] == 3

    def test_the_installed_command_survives_a_restart_without_a_word(
        self, own_database: str, cluster: Cluster, bare_environment: dict[str, str], tmp_path: Path
    ) -> None:
        """cron mails nothing about a database that was updated at three in the morning."""
        with database.connect(own_database) as connection:
            self.people(connection, 2)
        with PortalServer([hang()]) as portal:
            environment = bare_environment | {
                "CERTJOB_DATABASE_URL": own_database,
                "CERTJOB_PORTAL_URL": portal.url,
                "CERTJOB_PORTAL_KEY": portal.key,
                "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
            }
            with started("run", environment=environment, folder=tmp_path) as child:
                portal.wait_until(lambda: len(portal.requests) >= 1)
                cluster.restart()
                portal.release()
                result = child.finish()

        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        with database.connect(own_database) as connection:
            assert Facts(connection).rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]
        assert len({request.contact_id for request in portal.requests}) == 2

    def test_a_server_that_stays_away_ends_the_run_with_a_line(
        self, lasting: LastingConnection, cluster: Cluster
    ) -> None:
        """Within the time it has; what was committed is kept."""
        self.people(lasting, 1)
        lasting.patience_seconds = 0.6
        portal = DisturbedPortal(lambda _number: cluster.stop())

        began = time.monotonic()
        try:
            with pytest.raises(DatabaseUnavailableError, match=r"went away .* not back after 1 s; .* run it again"):
                night(lasting, portal=portal, channel=CollectingChannel())
        finally:
            cluster.start()

        assert time.monotonic() - began < 20
        with database.connect(lasting.url) as fresh:
            assert Facts(fresh).rows("SELECT count(*) FROM mentor_pauses") == [(1,)]
            assert Facts(fresh).rows("SELECT finished_at IS NULL FROM job_runs") == [(True,)]

    def test_a_signal_ends_the_wait(self, lasting: LastingConnection, cluster: Cluster) -> None:
        """Nobody has to kill it."""
        stop = StopFlag()
        outlast_restarts(lasting, stop=stop)
        cluster.stop()
        try:
            threading.Timer(0.3, stop.set).start()
            with pytest.raises(StoppedBySignalError):
                repeated(lasting, lambda: lasting.execute("SELECT 1"))
        finally:
            cluster.start()


def until_it_is_over(session: Connection) -> None:
    """Wait until the server has ended the session; the socket tells, before any statement asks."""
    assert select.select([session.fileno()], [], [], 20)[0]


class TestRepeated:
    """What is done again, and what is not."""

    @pytest.fixture
    def session(self, database_url: str) -> Iterator[LastingConnection]:
        with database.connect(database_url) as connection:
            outlast_restarts(connection, stop=StopFlag())
            yield connection

    @staticmethod
    def end(session: Connection) -> None:
        """The server ends this session, as at a shutdown."""
        with pytest.raises(psycopg.errors.AdminShutdown):
            session.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    def test_whoever_holds_the_connection_goes_on_with_it(self, session: LastingConnection) -> None:
        """Opened anew in place, with all that makes it certjob's."""
        old = session.info.backend_pid
        self.end(session)

        assert database.fetch_value(session, "read_clock")

        assert session.info.backend_pid != old
        assert session.autocommit
        assert session.isolation_level is psycopg.IsolationLevel.READ_COMMITTED
        assert session.execute("SHOW application_name").fetchone() == ("certjob",)
        with database.transaction(session, lock_timeout_ms=5):
            assert session.execute("SHOW lock_timeout").fetchone() == ("5ms",)
        assert session.info.transaction_status is psycopg.pq.TransactionStatus.IDLE

    def test_a_transaction_that_was_cut_off_leaves_none_open(self, session: LastingConnection) -> None:
        """The next one is a whole one again, not a savepoint of the dead."""
        tries = []

        def work() -> None:
            with database.transaction(session):
                tries.append(session.info.backend_pid)
                session.execute("CREATE TABLE once (id int)")
                if len(tries) == 1:
                    session.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        repeated(session, work)

        assert len(set(tries)) == 2
        assert session.execute("SELECT to_regclass('once') IS NOT NULL").fetchone() == (True,)

    @pytest.mark.parametrize("timeout", ["idle_in_transaction_session_timeout", "transaction_timeout"])
    def test_a_session_that_the_server_timed_out_is_a_lost_one(self, session: LastingConnection, timeout: str) -> None:
        """The work is done once more, in a new session."""
        if timeout == "transaction_timeout" and session.info.server_version < 170000:
            pytest.skip("PostgreSQL 17 brought it")
        tries: list[int] = []

        def work() -> object:
            tries.append(session.info.backend_pid)
            with database.transaction(session):
                if len(tries) == 1:
                    session.execute(f"SET LOCAL {timeout} = '50ms'".encode())
                    until_it_is_over(session)
                return session.execute("SELECT 1").fetchone()

        assert repeated(session, work) == (1,)
        assert len(set(tries)) == 2

    def test_what_is_not_done_again(self, session: LastingConnection, database_url: str) -> None:
        """Part of a transaction; what somebody at a terminal waits for; what would only run out of time again."""

        def in_a_transaction() -> None:
            with database.transaction(session):
                self.end(session)
                database.fetch_value(session, "read_clock")

        with pytest.raises(psycopg.OperationalError):
            in_a_transaction()
        assert session.restarts == 0

        with database.connect(database_url) as plain:
            self.end(plain)
            with pytest.raises(psycopg.OperationalError):
                database.fetch_value(plain, "read_clock")

        with database.connect(database_url) as slow:
            outlast_restarts(slow, stop=StopFlag())
            slow.execute("SET statement_timeout = '50ms'")
            with pytest.raises(psycopg.errors.QueryCanceled):
                repeated(slow, lambda: slow.execute("SELECT pg_sleep(10)"))

    def test_work_that_brings_the_server_down_each_time_is_given_up(self, session: LastingConnection) -> None:
        """Otherwise it would do so all night."""
        tries = []

        def work() -> None:
            tries.append(1)
            session.execute("SELECT pg_terminate_backend(pg_backend_pid())")

        with pytest.raises(DatabaseUnavailableError, match=r"went away 5 times and more in one run: .*server's log"):
            repeated(session, work)

        assert len(tries) == connections.MOST_RESTARTS + 1

    def test_what_tidies_up_after_a_server_that_was_given_up_does_not_hide_why(
        self, session: LastingConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The stage that gives back what it has claimed, say: it finds a closed connection, which explains nothing."""
        monkeypatch.setattr(connections, "MOST_RESTARTS", 0)
        self.end(session)

        def work() -> None:
            try:
                database.fetch_value(session, "read_clock")
            finally:
                database.execute(session, "touch_job_run", {"id": uuid4()})

        with pytest.raises(DatabaseUnavailableError, match="times and more in one run"):
            work()

    def test_a_changed_password_is_said_at_once(
        self, session: LastingConnection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Waiting for it would help nobody."""

        def refuse(_url: str) -> LastingConnection:
            message = "the database refused the connection: password authentication failed"
            raise ConfigurationError(message)

        self.end(session)
        monkeypatch.setattr(connections, "connect", refuse)

        with pytest.raises(ConfigurationError, match="password"):
            database.fetch_value(session, "read_clock")
