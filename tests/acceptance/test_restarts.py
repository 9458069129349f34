"""A database that is restarted in mid-run: the run waits for it and goes on where it was, or says that it is gone."""

import select
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, connections, outlast_restarts, repeated
from certjob.errors import ConfigurationError, DatabaseUnavailableError, StoppedBySignalError
from certjob.facts import reading
from certjob.mail.message import OutgoingMessage
from certjob.review import certification
from certjob.stopping import StopFlag
from tests.support.command_line import started
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.own_server import Cluster
from tests.support.portal_answers import hang
from tests.support.portal_server import PortalServer


@pytest.fixture
def lasting(cluster: Cluster) -> Iterator[Connection]:
    """A connection as `certjob run` has it, to a database on a server that may be stopped."""
    with cluster.fresh_database(f"restart_{uuid4().hex[:12]}") as url, database.connect(url) as connection:
        outlast_restarts(connection, stop=StopFlag())
        yield connection


def add_people(connection: Connection, number: int) -> Facts:
    people = Facts(connection)
    organisation = people.organisation()
    for _ in range(number):
        people.certified_mentor(organisation, TODAY - timedelta(days=1))
    return people


def test_a_night_with_four_restarts_does_everything_once(
    lasting: Connection, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a chunk's lock and its write, which are gone; in a call, a mail and a digest, whose outcome is kept."""
    people = add_people(lasting, 12)
    ((organisation,),) = people.rows("SELECT id FROM organisations")
    people.insert("coordinators", organisation_id=organisation, email="anna@example.org")
    read, chunks, sent = reading.read, list[int](), list[str]()

    def read_and_strike(connection: Connection, ids: Any, *, lock: bool) -> Any:
        found = read(connection, ids, lock=lock)
        if lock:  # a mail reads its mentor, too
            chunks.append(len(ids))
            if len(chunks) == 2:
                cluster.restart()
        return found

    def strike(message: OutgoingMessage) -> None:
        sent.append(message.kind)
        if sent in (["reminder"] * 2, ["reminder"] * 12 + ["digest"]):
            cluster.restart()

    monkeypatch.setattr(reading, "read", read_and_strike)
    monkeypatch.setattr(certification, "CHUNK_SIZE", 5)
    portal = FlakyPortal(lambda number: cluster.restart() if number == 2 else None)
    channel = CollectingChannel(on_send=strike)

    report = night(lasting, portal=portal, channel=channel).to_document()

    assert chunks == [5, 5, 5, 2]
    mentors = report["mentors"]
    assert (mentors["reviewed"], mentors["paused"], mentors["skipped"]) == (12, 12, 0)
    assert people.rows("SELECT count(*), count(DISTINCT mentor_id) FROM mentor_pauses") == [(12, 12)]
    assert (report["portal"]["delivered"], report["reminders"]["sent"], report["digests"]["sent"]) == (12, 12, 1)
    assert (len(portal.calls), len(sent), lasting.restarts) == (12, 13, 4)
    assert people.rows("SELECT status, count(*) FROM portal_sync_events GROUP BY 1") == [("delivered", 12)]
    mails = people.rows("SELECT status, maybe_sent, count(*) FROM cert_notification_log GROUP BY 1, 2")
    assert mails == [("sent", False, 12)]
    assert people.rows("SELECT outcome FROM job_runs") == [("ok",)]
    night(lasting, TODAY + timedelta(days=1), portal=portal, channel=channel)
    assert len(sent) == 13, "what a digest has told is not told again"


def test_the_installed_command_survives_a_restart_without_a_word(
    lasting: Connection, cluster: Cluster, environment: dict[str, str], portal: PortalServer, tmp_path: Path
) -> None:
    """cron mails nothing about a database that was updated at three in the morning."""
    add_people(lasting, 2)
    portal.then(hang())

    settings = environment | {"CERTJOB_DATABASE_URL": lasting.url}
    with started("run", environment=settings, folder=tmp_path) as child:
        portal.wait_until(lambda: len(portal.requests) >= 1)
        cluster.restart()
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert len({request.contact_id for request in portal.requests}) == 2


def test_a_server_that_stays_away_ends_the_run_with_a_line_and_a_signal_ends_the_wait(
    lasting: Connection, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the time it has; what was committed is kept."""
    add_people(lasting, 1)
    stop, portal = StopFlag(), FlakyPortal(lambda _number: cluster.stop())
    other = database.connect(lasting.url)
    outlast_restarts(other, stop=stop)
    try:
        with monkeypatch.context() as shorter:
            shorter.setattr(connections, "RESTART_PATIENCE_SECONDS", 0.6)
            with pytest.raises(DatabaseUnavailableError, match=r"went away .* not back after 1 s; .* run it again"):
                night(lasting, portal=portal, channel=CollectingChannel())
        threading.Timer(0.3, stop.set).start()
        with pytest.raises(StoppedBySignalError):
            repeated(other, lambda: other.execute("SELECT 1"))
    finally:
        cluster.start()

    with database.connect(lasting.url) as fresh:
        people = Facts(fresh)
        assert people.rows("SELECT count(*) FROM mentor_pauses") == [(1,)]
        assert people.rows("SELECT finished_at IS NULL FROM job_runs") == [(True,)]


def terminate(session: Connection) -> None:
    """The server ends this session, as at a shutdown."""
    with pytest.raises(psycopg.errors.AdminShutdown):
        session.execute("SELECT pg_terminate_backend(pg_backend_pid())")


def test_no_statement_of_a_night_goes_on_for_ever(lasting: Connection) -> None:
    """The limits are the transaction's own, and one that the administrator has set stays."""
    shown = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    for of_the_session, of_the_night in (("0", "10min"), ("20min", "20min")):
        lasting.execute(f"SET statement_timeout = '{of_the_session}'".encode())
        with database.transaction(lasting, lock_timeout_ms=500):
            assert lasting.execute(shown).fetchone() == ("500ms", of_the_night)
        assert lasting.execute(shown).fetchone() == ("0", of_the_session)


@pytest.mark.parametrize("setting", ["", "idle_in_transaction_session_timeout", "transaction_timeout"])
def test_a_transaction_that_was_cut_off_is_done_once_more(lasting: Connection, setting: str) -> None:
    """At once or by a time-out: in a new session, and as a whole one, not as a savepoint of the dead."""
    if setting == "transaction_timeout" and lasting.info.server_version < 170000:
        pytest.skip("PostgreSQL 17 brought it")
    tries: list[int] = []

    def work() -> None:
        with database.transaction(lasting):
            tries.append(lasting.info.backend_pid)
            lasting.execute("CREATE TABLE once (id int)")
            if len(tries) == 1:
                kill = "SELECT pg_terminate_backend(pg_backend_pid())"
                lasting.execute((f"SET LOCAL {setting} = '50ms'" if setting else kill).encode())
                assert select.select([lasting.fileno()], [], [], 20)[0]
                lasting.execute("SELECT 1")

    repeated(lasting, work)

    assert len(set(tries)) == 2
    assert lasting.execute("SELECT to_regclass('once') IS NOT NULL").fetchone() == (True,)
    assert (lasting.autocommit, lasting.isolation_level) == (True, psycopg.IsolationLevel.READ_COMMITTED)
    assert lasting.execute("SHOW application_name").fetchone() == ("certjob",)


def test_what_is_not_done_again(lasting: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would only time out again; part of a transaction; what a person waits for; a password that was changed."""

    def refuse(_url: str) -> Connection:
        message = "password authentication failed"
        raise ConfigurationError(message)

    def in_a_transaction() -> None:
        with database.transaction(lasting):
            terminate(lasting)
            database.fetch_value(lasting, "read_clock")

    lasting.execute("SET statement_timeout = '50ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        repeated(lasting, lambda: lasting.execute("SELECT pg_sleep(10)"))
    with pytest.raises(psycopg.OperationalError):
        in_a_transaction()
    assert lasting.restarts == 0
    with database.connect(lasting.url) as plain:
        terminate(plain)
        with pytest.raises(psycopg.OperationalError):
            database.fetch_value(plain, "read_clock")
    monkeypatch.setattr(connections, "connect", refuse)
    with pytest.raises(ConfigurationError):
        database.fetch_value(lasting, "read_clock")


def test_work_that_brings_the_server_down_each_time_is_given_up(lasting: Connection) -> None:
    """Otherwise it would do so all night; what tidies up on the closed connection does not hide why."""
    tries = []

    def work() -> None:
        tries.append(1)
        try:
            lasting.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        finally:
            if len(tries) > connections.MOST_RESTARTS:
                database.execute(lasting, "touch_job_run", {"id": uuid4()})

    with pytest.raises(DatabaseUnavailableError, match=r"went away 5 times and more in one run: .*server's log"):
        repeated(lasting, work)

    assert len(tries) == lasting.restarts == connections.MOST_RESTARTS + 1
