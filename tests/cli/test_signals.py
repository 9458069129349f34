"""SIGTERM, SIGINT and SIGHUP, whatever certjob is doing: an end within 10 s, one line, nothing lost, nothing kept."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import date, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection, migrations
from certjob.errors import StoppedBySignalError
from certjob.stopping import STOP_SIGNALS, StopFlag
from tests.conftest import installed_command
from tests.support.command_line import WITHIN_SECONDS, Backends, Child, Finished, assert_one_line, started
from tests.support.facts import Facts
from tests.support.ping_host import ping_host
from tests.support.portal_answers import error, hang, ok
from tests.support.portal_server import PortalServer
from tests.support.processes import while_open
from tests.support.smtp_server import Fault, scripted_server
from tests.support.stalling_proxy import StallingProxy
from tests.support.waiting import until

LONG_AGO = date(2025, 1, 1)
SOON = date.today() + timedelta(days=5)  # noqa: DTZ011 - due for the reminder of 7 days, around midnight too

AT_ONCE_SECONDS = 4.0
"""Much less than the grace, and enough for a busy machine."""

App = psycopg.Connection[tuple[object, ...]]
Start = Callable[..., AbstractContextManager[Child]]


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str) -> dict[str, str]:
    return bare_environment | {"CERTJOB_DATABASE_URL": database_url}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Start:
    """Start the command in the background; keyword arguments are its settings."""

    def run(*arguments: str, **settings: str) -> AbstractContextManager[Child]:
        return started(*arguments, environment=environment | settings, folder=tmp_path)

    return run


@pytest.fixture
def start_impatient(environment: dict[str, str], tmp_path: Path) -> Start:
    """The same with a grace of half a second; one test of the worst case has the whole."""

    def run(*arguments: str, **settings: str) -> AbstractContextManager[Child]:
        return started(*arguments, environment=environment | settings, folder=tmp_path, grace=0.5)

    return run


@pytest.fixture
def backends(connection: Connection, facts: Facts, app: App) -> Backends:
    """The children's sessions; those of the test are open already."""
    del facts, app
    return Backends(connection)


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server


def portal_settings(portal: PortalServer) -> dict[str, str]:
    return {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key}


def assert_stopped(result: Finished, *, name: str = "SIGTERM", command: str = "certjob run") -> None:
    assert_one_line(result, f"stopped by {name}", "the next run does the rest", code=1, command=command)
    assert result.stdout == ""


def assert_recorded_as_failed(facts: Facts) -> None:
    assert facts.rows("SELECT outcome, finished_at IS NOT NULL FROM job_runs") == [("failed", True)]


def assert_completes(start: Start, *arguments: str, **settings: str) -> None:
    """The next run, undisturbed, ends well."""
    with start(*arguments, **settings) as child:
        result = child.finish()
    assert (result.returncode, result.stderr) == (0, "")


# Before anything has begun.


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_while_connecting(start: Start, number: signal.Signals) -> None:
    """A database host that accepts the connection and says nothing: there is nothing to wait for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/x"
        with start("run", CERTJOB_DATABASE_URL=url) as child:
            listener.settimeout(20)
            silent, _ = listener.accept()
            with silent:
                silent.recv(1)
                result = child.stop_within(AT_ONCE_SECONDS, number)

    assert_stopped(result, name=number.name)


def test_while_a_look_waits_for_a_locked_table(start: Start, app: App, backends: Backends) -> None:
    """Who only reads has nothing to finish."""
    app.execute("LOCK TABLE mentors, certjob_migrations")

    for command, *options in (("alerts",), ("run", "--dry-run"), ("db status",)):
        with start(*command.split(), *options) as child:
            backends.wait_for_query("", waiting_for="Lock")
            result = child.stop_within(AT_ONCE_SECONDS)

        assert_stopped(result, command=f"certjob {command}")
        backends.wait_until_gone()


def test_while_a_migration_waits_for_another(start: Start, app: App, backends: Backends) -> None:
    """The lock of the migrations is held by somebody."""
    app.execute("SELECT pg_advisory_xact_lock(%s)", (migrations._LOCK_KEY,))

    with start("db", "migrate") as child:
        backends.wait_for_query("COMMIT")  # it has tried in vain, and will again
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_stopped(result, command="certjob db migrate")
    app.rollback()
    assert_completes(start, "db", "migrate")


# In the review.


def test_while_a_run_waits_for_a_held_mentor(start: Start, facts: Facts, app: App, backends: Backends) -> None:
    """At the end of the review; what was reviewed before stays reviewed. A JSON line names the run in the ledger."""
    organisation_id = facts.organisation(portal=None)
    facts.certified_mentor(organisation_id, LONG_AGO, member_no="free")
    facts.certified_mentor(organisation_id, LONG_AGO, member_no="held")
    app.execute("SELECT FROM mentors WHERE member_no = 'held' FOR UPDATE")

    with start("run", CERTJOB_LOG_FORMAT="json") as child:
        until(lambda: paused(facts) == ["free"])
        backends.wait_for_query("COMMIT")  # what is left is held by somebody
        result = child.stop_within(AT_ONCE_SECONDS)

    (line,) = map(json.loads, result.stderr.splitlines())
    assert (result.returncode, line["event"], line["level"]) == (1, "failed", "error")
    assert line["message"].startswith("stopped by SIGTERM; ")
    assert_recorded_as_failed(facts)
    assert [(str(row[0]),) for row in facts.rows("SELECT id FROM job_runs")] == [(line["run_id"],)]
    assert paused(facts) == ["free"]
    app.rollback()
    assert_completes(start, "run")
    assert paused(facts) == ["free", "held"]


def paused(facts: Facts) -> list[object]:
    rows = facts.rows(
        "SELECT member_no FROM mentors m JOIN mentor_pauses p ON p.mentor_id = m.id"
        " WHERE lifted_at IS NULL ORDER BY member_no"
    )
    return [member_no for (member_no,) in rows]


def test_while_a_chunk_waits_for_a_locked_table(start: Start, facts: Facts, app: App, backends: Backends) -> None:
    """Half a second a mentor would take minutes: the signal is seen between two of them."""
    organisation_id = facts.organisation(portal=None)
    for _ in range(15):
        facts.certified_mentor(organisation_id, LONG_AGO)
    app.execute("LOCK TABLE certificate_transitions")

    with start("run") as child:
        backends.wait_for_query("certificate_transitions", waiting_for="Lock")
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_stopped(result)
    assert_recorded_as_failed(facts)
    assert paused(facts) == []
    app.rollback()
    assert_completes(start, "run")
    assert len(paused(facts)) == 15


def test_in_the_middle_of_a_big_review(start: Start, facts: Facts, app: App) -> None:
    """Every mentor is reviewed wholly or not at all, and the next run has the rest."""
    organisation_id = facts.organisation()
    insert_expired(facts, organisation_id, 2000)
    app.execute("SELECT FROM mentors WHERE member_no = 'B1' FOR UPDATE")  # so that it cannot end before the signal

    with start("run", "--allow-mass-change", "--no-deliver") as child:
        until(lambda: facts.rows("SELECT FROM mentor_pauses LIMIT 1"))  # the first chunk is committed
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_stopped(result)
    assert_recorded_as_failed(facts)
    assert torn(facts) == []
    app.rollback()
    assert_completes(start, "run", "--allow-mass-change", "--no-deliver")
    assert torn(facts) == []
    assert len(paused(facts)) == 2000


def insert_expired(facts: Facts, organisation_id: UUID, number: int) -> None:
    facts.connection.execute(
        "WITH m AS (INSERT INTO mentors (organisation_id, member_no, dynamics_contact_id)"
        " SELECT %s, 'B' || n, gen_random_uuid() FROM generate_series(1, %s) AS n RETURNING id)"
        " INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        " SELECT id, 'likeperson', '2024-01-01', %s FROM m",
        (organisation_id, number, LONG_AGO),
    )


def torn(facts: Facts) -> list[tuple[object, ...]]:
    """Mentors of whom only a part of state, pause, audit and intent was written."""
    return facts.rows(
        "SELECT m.id FROM mentors m WHERE 1 < (SELECT count(DISTINCT x) FROM unnest(ARRAY["
        " EXISTS (SELECT FROM certificates c WHERE c.mentor_id = m.id AND c.status = 'expired'),"
        " EXISTS (SELECT FROM mentor_pauses p WHERE p.mentor_id = m.id),"
        " EXISTS (SELECT FROM certificate_transitions t WHERE t.mentor_id = m.id),"
        " EXISTS (SELECT FROM portal_sync_events e WHERE e.mentor_id = m.id)]) AS x)"
    )


def test_while_a_resync_waits_for_a_held_mentor(start: Start, facts: Facts, app: App, backends: Backends) -> None:
    """Nothing is changed."""
    facts.certified_mentor(facts.organisation(portal=None), LONG_AGO, member_no="M1")
    app.execute("SELECT FROM mentors FOR UPDATE")

    with start("resync", "M1") as child:
        backends.wait_for_query("mentors", waiting_for="Lock")
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_stopped(result, command="certjob resync")
    assert_recorded_as_failed(facts)
    assert paused(facts) == []


# In the delivery.


def test_while_calls_to_the_portal_hang(
    start: Start, start_impatient: Start, facts: Facts, portal: PortalServer
) -> None:
    """They get a few seconds to end and keep their leases; what was claimed with them and not begun is free at once."""
    portal.default = hang()
    insert_expired(facts, facts.organisation(), 7)

    with start_impatient("run", **portal_settings(portal)) as child:
        portal.wait_until(lambda: len(portal.requests) == 4)
        result = child.stop_within()

    assert_stopped(result)
    assert_recorded_as_failed(facts)
    begun = {request.contact_id for request in portal.requests}
    assert len(portal.requests) == 4
    assert leases(facts) == {contact_id: contact_id in begun for contact_id in leases(facts)}
    portal.release()
    facts.connection.execute("UPDATE portal_sync_events SET next_attempt_at = now()")  # five minutes later
    with PortalServer(key=portal.key) as healthy:
        assert_completes(start, "run", **portal_settings(healthy))
        assert set(healthy.visible.values()) == {False}
        assert len(healthy.visible) == 7
    assert facts.rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]


def test_while_the_database_stalls(start: Start, facts: Facts, portal: PortalServer, database_url: str) -> None:
    """Its proxy keeps the connection and swallows the cancellation: the socket is closed, or the process ends hard."""
    portal.default = hang(ok())
    insert_expired(facts, facts.organisation(), 1)

    with (
        StallingProxy(database_url) as proxy,
        start("run", "--json", CERTJOB_DATABASE_URL=proxy.url, **portal_settings(portal)) as child,
    ):
        portal.wait_until(lambda: len(portal.requests) == 1)
        proxy.stall()
        portal.release()  # its settle waits for the database, for ever
        result = child.stop_within()

    assert_one_line(result, "stopped by SIGTERM", code=1)
    assert json.loads(result.stdout)["error"]["code"] == "stopped"


def leases(facts: Facts) -> dict[object, object]:
    """Contact id to whether its open event is leased to somebody; an event is due now if it is not."""
    rows = facts.rows(
        "SELECT dynamics_contact_id, claim_token IS NOT NULL, next_attempt_at > now()"
        " FROM portal_sync_events e JOIN mentors m ON m.id = e.mentor_id WHERE status = 'pending'"
    )
    assert all(has_token == waits for _, has_token, waits in rows)
    return {contact_id: has_token for contact_id, has_token, _ in rows}


def test_a_second_signal_ends_it_at_once(start: Start, facts: Facts, portal: PortalServer) -> None:
    """A person who presses Ctrl-C twice means it; still one line, and the run is recorded."""
    portal.default = hang()
    insert_expired(facts, facts.organisation(), 7)

    with start("run", **portal_settings(portal)) as child:
        portal.wait_until(lambda: len(portal.requests) == 4)
        child.signal(signal.SIGINT)
        result = child.stop_within(AT_ONCE_SECONDS, signal.SIGTERM)  # another one: two alike at one moment are merged

    assert_stopped(result, name="SIG")  # whichever of the two came last
    assert_recorded_as_failed(facts)


def test_while_the_portal_asked_to_wait(start: Start, facts: Facts, portal: PortalServer) -> None:
    """Five minutes of Retry-After are not waited for; no lease is held meanwhile."""
    portal.default = error(429, "throttled", retry_after="300")
    insert_expired(facts, facts.organisation(), 6)

    with start("run", CERTJOB_PORTAL_CONCURRENCY="1", **portal_settings(portal)) as child:
        until(lambda: facts.rows("SELECT FROM portal_sync_events WHERE next_attempt_at > now() + interval '4 min'"))
        until(lambda: not any(leased(facts)))
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_stopped(result)
    assert_recorded_as_failed(facts)
    assert leased(facts) == [False] * 6
    assert len(portal.requests) == 1


def test_when_the_terminal_has_gone(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """The line of an ssh session drops: nobody reads any more, and yet the run is recorded and its end reported."""
    organisation_id = facts.organisation()
    for _ in range(6):
        facts.certified_mentor(organisation_id, LONG_AGO)
    portal.default = hang()
    environment |= portal_settings(portal)
    master, slave = pty.openpty()
    with ping_host() as monitor:
        environment |= {"CERTJOB_PING_URL": monitor.url}
        command = [sys.executable, "-c", _ON_ITS_OWN_TERMINAL, "run"]
        with subprocess.Popen(
            command, env=environment, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        ) as run:
            try:
                os.close(slave)
                until(lambda: len(portal.requests) == 4)

                os.close(master)

                assert run.wait(WITHIN_SECONDS) == 1
            finally:
                run.kill()
        assert monitor.told == ["start", "1"]
    assert_recorded_as_failed(facts)
    assert leased(facts).count(True) == 4


_ON_ITS_OWN_TERMINAL = """
import fcntl, termios
from certjob import stopping
from certjob.cli import entry
from certjob.portal import stage
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
stopping.GRACE_SECONDS = stage.GRACE_SECONDS = 0.5
entry.main()
"""


def test_nohup_outlasts_the_terminal(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """Who started it so that it ignores SIGHUP wants it to go on."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    gate = threading.Event()
    portal.default = while_open(gate, ok())
    environment |= portal_settings(portal)
    program = ["nohup", str(installed_command())]
    with started("run", environment=environment, folder=tmp_path, program=program) as child:
        portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
        child.signal(signal.SIGHUP)
        gate.set()
        result = child.finish()

    assert (result.returncode, result.stderr) == (0, "")


def leased(facts: Facts) -> list[object]:
    return [row[0] for row in facts.rows("SELECT claim_token IS NOT NULL FROM portal_sync_events")]


@pytest.mark.parametrize(("stage", "bodies"), [("DATA", 0), ("END", 1)], ids=["before the dot", "after the dot"])
def test_while_the_mail_server_says_nothing(
    start: Start, start_impatient: Start, facts: Facts, stage: str, bodies: int
) -> None:
    """The message in hand keeps its lease, and says that it may be a repeat; the others are free at once."""
    organisation_id = facts.organisation(portal=None)
    for _ in range(3):
        facts.certified_mentor(organisation_id, SOON)

    with scripted_server({stage: Fault.HANG}) as server:
        with start_impatient("run", **mail_settings(server.port)) as child:
            until(lambda: "DATA" in server.commands and len(server.bodies) == bodies)
            result = child.stop_within()

        assert_stopped(result)
        assert_recorded_as_failed(facts)
        rows = facts.rows(
            "SELECT status, claim_token IS NULL, next_attempt_at <= now(), attempts FROM cert_notification_log"
            " ORDER BY claim_token IS NULL"
        )
        assert rows == [("pending", False, False, 1), ("pending", True, True, 0), ("pending", True, True, 0)]

        del server.answers[stage]
        facts.connection.execute("UPDATE cert_notification_log SET next_attempt_at = now()")  # 15 minutes later
        assert_completes(start, "run", **mail_settings(server.port))
        assert len(server.bodies) == bodies + 3
    sent = facts.rows("SELECT status, maybe_sent, count(*)::int FROM cert_notification_log GROUP BY 1, 2 ORDER BY 2")
    assert sent == [("sent", False, 2), ("sent", True, 1)]


def mail_settings(port: int) -> dict[str, str]:
    return {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{port}", "CERTJOB_MAIL_FROM": "certjob@example.org"}


# In a load.


def test_while_a_big_file_is_read(start: Start, facts: Facts, backends: Backends, tmp_path: Path) -> None:
    """Nothing was loaded, and the line says so."""
    facts.organisation(portal=None)
    lines = [f"hlf,B{number},likeperson,2025-01-01,2027-01-01\n" for number in range(400_000)]
    (tmp_path / "roster.csv").write_text("organisation,member_no,kind,issued_on,expires_on\n" + "".join(lines))

    with start("load", "roster.csv") as child:
        backends.wait_for_query("COMMIT")
        result = child.stop_within()

    assert_one_line(result, "stopped by", "load", code=1, command="certjob load")
    assert facts.rows("SELECT count(*) < 400000 FROM certificates") == [(True,)]


# The flag itself.


def test_what_does_not_let_go_is_ended_hard_with_its_line() -> None:
    """Exit 1 as ever; nothing is left to run but the last words."""
    script = (
        "import os, signal, time\n"
        "from certjob import stopping\n"
        "stopping.GRACE_SECONDS = stopping.CLEANING_UP_SECONDS = 0.1\n"
        "flag = stopping.stop_on_signals()\n"
        "flag.break_off = lambda: None\n"
        "flag.last_words = lambda error: print(error, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)

    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.startswith("stopped by SIGTERM; ")


def test_a_second_signal_in_the_handler_of_the_first_leaves_a_clock() -> None:
    """What ends the wait may hang in its own end, on a silent database."""
    script = (
        "import os, signal\n"
        "from certjob import stopping\n"
        "flag = stopping.stop_on_signals()\n"
        "name = signal.Signals\n"
        "def interrupted(number):\n"
        "    signal.Signals = name\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return name(number)\n"
        "signal.Signals = interrupted\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "except stopping.Interrupted:\n"
        "    print(signal.getitimer(signal.ITIMER_REAL)[0] > 0, flag.asked_at is not None)\n"
    )

    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)

    assert (result.returncode, result.stdout, result.stderr) == (0, "True True\n", "")


def test_the_end_of_the_command_stops_the_clock() -> None:
    """An alarm that rings while the interpreter shuts down would find no handler, and kill what ended well."""
    flag = StopFlag()
    flag.set()
    signal.setitimer(signal.ITIMER_REAL, 3600)

    flag.end()

    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_stop_is_seen_before_and_during_a_sleep() -> None:
    """check, sleep and interruptible raise once it is set, and not before."""
    flag = StopFlag()
    flag.check()
    flag.sleep(0)
    seen = []
    with flag.interruptible():
        seen.append(flag.breaks_off)
    seen.append(flag.breaks_off)
    assert seen == [True, False]
    flag.set()

    for use in (flag.check, lambda: flag.sleep(60), lambda: flag.interruptible().__enter__()):
        with pytest.raises(StoppedBySignalError, match="the next run does the rest"):
            use()


def test_a_signal_in_the_middle_of_a_wait_does_not_hang() -> None:
    """The handler sets the flag while its own thread holds the flag's lock, a few instructions long."""
    flag = StopFlag()
    done = threading.Event()

    def interrupted_in_wait() -> None:
        with flag._cond:  # where Event.wait is, when the handler is called
            flag.set()
        done.set()

    threading.Thread(target=interrupted_in_wait, daemon=True).start()

    assert done.wait(10)
    assert flag.is_set()
