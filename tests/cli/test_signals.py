"""SIGTERM, SIGINT and SIGHUP: the command ends within 10 s with one line, and the next run does the rest."""

import errno
import json
import os
import pty
import signal
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest

from certjob.cli import entry
from certjob.database import migrations
from certjob.errors import MentorBusyError, StoppedBySignalError
from certjob.stopping import STOP_SIGNALS, StopFlag
from tests.cli.conftest import LONG_AGO, SOON
from tests.support.command_line import WITHIN_SECONDS, Backends, Child, Finished, assert_one_line, started
from tests.support.facts import Facts
from tests.support.nights import make_due
from tests.support.ping_host import ping_host
from tests.support.portal_answers import hang, ok
from tests.support.portal_server import PortalServer
from tests.support.proxy import StallingProxy
from tests.support.smtp_server import Fault, ScriptedServer
from tests.support.waiting import until

AT_ONCE_SECONDS = 4.0
"""Less than the grace, and enough for a busy machine."""
CANCELLING_SECONDS = 10.0
"""How long psycopg tries to cancel a statement of a silent server before it closes the connection."""
IMPATIENT = 0.5
"""A short grace in seconds."""


class Commands:
    """Commands that run in the background, without a mail server, and their database."""

    def __init__(self, facts: Facts, app: psycopg.Connection[Any], environment: dict[str, str], folder: Path) -> None:
        self.facts, self.rows, self.app, self.environment, self.folder = facts, facts.rows, app, environment, folder
        self.backends = Backends(facts.connection)
        """The database sessions of the commands."""

    def start(self, *arguments: str, **more: Any) -> AbstractContextManager[Child]:
        """Start a command. Upper-case keyword arguments are settings, the others are those of ``started``."""
        settings = {f"CERTJOB_{name}": more.pop(name) for name in [*more] if name.isupper()}
        environment = self.environment | {"CERTJOB_NOTIFY_URL": ""} | settings
        return started(*arguments, environment=environment, folder=self.folder, **more)

    def add_mentors(self, count: int, *, portal: str | None = None, expires_on: date = LONG_AGO) -> None:
        """Add an organisation with mentors B1, B2, … who have one certificate each."""
        self.facts.connection.execute(
            "WITH m AS (INSERT INTO mentors (organisation_id, member_no, email, dynamics_contact_id)"
            " SELECT %s, 'B' || n, 'b' || n || '@example.org', gen_random_uuid() FROM generate_series(1, %s) AS n"
            " RETURNING id) INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
            " SELECT id, 'likeperson', '2024-01-01', %s FROM m",
            (self.facts.organisation(portal=portal), count, expires_on),
        )

    def paused(self) -> int:
        return len(self.rows("SELECT FROM mentor_pauses"))

    def leased(self) -> set[object]:
        """Return the contacts of claimed events. All other events are due."""
        rows = self.rows(
            "SELECT dynamics_contact_id, claim_token IS NOT NULL, next_attempt_at > now()"
            " FROM portal_sync_events e JOIN mentors m ON m.id = e.mentor_id WHERE status = 'pending'"
        )
        assert all(has_token == waits for _, has_token, waits in rows)
        return {contact_id for contact_id, has_token, _ in rows if has_token}

    def assert_stopped(self, result: Finished, *, name: str = "SIGTERM") -> None:
        """Check the line of a stopped run, and its record."""
        assert "the next run does the rest" in assert_one_line(result, f"stopped by {name}", code=1)
        self.assert_recorded()

    def assert_recorded(self) -> None:
        assert self.rows("DELETE FROM job_runs RETURNING outcome, finished_at IS NOT NULL") == [("failed", True)]

    def assert_completes(self, *arguments: str, **settings: str) -> None:
        """Run a command without a signal."""
        with self.start(*arguments, **settings) as child:
            result = child.finish()
        assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture
def commands(facts: Facts, app: psycopg.Connection[Any], environment: dict[str, str], tmp_path: Path) -> Commands:
    return Commands(facts, app, environment, tmp_path)


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_signal_ends_a_connection_attempt_at_once(commands: Commands, number: signal.Signals) -> None:
    """The database host accepts the connection and does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        url = f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/x"
        with commands.start("run", DATABASE_URL=url) as child:
            silent, _ = listener.accept()
            with silent:
                silent.recv(1)
                result = child.stop_within(AT_ONCE_SECONDS, number)

    assert_one_line(result, f"stopped by {number.name}", code=1)


TABLES = "LOCK TABLE mentors, migrations"


@pytest.mark.parametrize(
    ("command", "lock", "is_recorded"),
    [
        ("alerts", TABLES, False),
        ("run --dry-run", TABLES, False),
        ("db migrate", f"SELECT pg_advisory_xact_lock({migrations._LOCK_KEY})", False),
        ("load roster.csv", TABLES, False),
        ("resync B1", "SELECT FROM mentors FOR UPDATE", True),
        ("run", "LOCK TABLE certificate_transitions", True),  # it waits for half a second per mentor
    ],
)
def test_signal_ends_a_wait_for_a_lock_at_once(commands: Commands, command: str, lock: str, is_recorded: bool) -> None:
    """The command has not written yet."""
    commands.add_mentors(15)
    roster = "organisation,member_no,kind,issued_on,expires_on\nhlf,B1,a,2025-01-01,2027-01-01\n"
    (commands.folder / "roster.csv").write_text(roster)
    commands.app.execute(lock.encode())

    with commands.start(*command.split()) as child:
        if command == "db migrate":  # it waits by polling, not for a lock
            commands.backends.wait_for_query("COMMIT")
        else:
            commands.backends.wait_for_query("", waiting_for="Lock")
        result = child.stop_within(AT_ONCE_SECONDS)

    name = command if command == "db migrate" else command.partition(" ")[0]
    assert_one_line(result, "stopped by SIGTERM", code=1, command=f"certjob {name}")
    if is_recorded:
        commands.assert_recorded()
    commands.backends.wait_until_gone()
    commands.app.rollback()
    assert commands.paused() == 0
    commands.assert_completes("run")
    assert commands.paused() == 15


def test_stopped_review_has_reviewed_whole_mentors(commands: Commands) -> None:
    """It is stopped after the first chunk, and again while it retries a locked mentor. The next run has the rest."""
    commands.add_mentors(1200, portal="dynamics")
    commands.app.execute("SELECT FROM mentors WHERE member_no = 'B1' FOR UPDATE")
    command = ("run", "--allow", "hlf=1200")

    with commands.start(*command) as child:
        until(commands.paused)
        result = child.stop_within(AT_ONCE_SECONDS)

    commands.assert_stopped(result)
    for table in ("certificate_transitions", "portal_sync_events"):
        assert len(commands.rows(f"SELECT FROM {table}")) == commands.paused()

    with commands.start(*command) as child:
        until(lambda: commands.paused() == 1199 and commands.rows("SELECT FROM job_runs"))
        commands.backends.wait_for_query("COMMIT")
        result = child.stop_within(AT_ONCE_SECONDS)

    commands.assert_stopped(result)
    commands.app.rollback()
    commands.assert_completes(*command)
    assert commands.paused() == 1200


def test_hanging_pushes_keep_their_leases(commands: Commands, portal: PortalServer) -> None:
    """Claimed pushes that have not begun are due at once. A second signal interrupts the grace."""
    portal.default = hang()
    commands.add_mentors(7, portal="dynamics")

    with commands.start("run", grace=IMPATIENT) as child:
        portal.wait_until(lambda: len(portal.requests) == 4)
        result = child.stop_within()

    commands.assert_stopped(result)
    assert len(portal.requests) == 4
    assert commands.leased() == {request.contact_id for request in portal.requests}

    make_due(commands.facts)  # five minutes later
    with commands.start("run") as child:
        portal.wait_until(lambda: len(portal.requests) == 8)
        child.signal(signal.SIGINT)
        result = child.stop_within(AT_ONCE_SECONDS, signal.SIGTERM)  # two equal signals could be merged

    commands.assert_stopped(result, name="SIG")  # the last of the two
    portal.release()
    make_due(commands.facts)
    with PortalServer(key=portal.key) as healthy:
        commands.assert_completes("run", PORTAL_URL=healthy.url)
        assert [*healthy.visible.values()] == [False] * 7
    assert commands.rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]


def test_silent_database_delays_the_end(commands: Commands, portal: PortalServer, database_url: str) -> None:
    """A proxy swallows the cancellation, so psycopg closes the connection after 10 seconds."""
    portal.default = hang(ok())
    commands.add_mentors(1, portal="dynamics")

    with (
        StallingProxy(database_url) as proxy,
        commands.start("run", "--json", grace=IMPATIENT, DATABASE_URL=proxy.url) as child,
    ):
        portal.wait_until(lambda: len(portal.requests) == 1)
        proxy.is_silent.set()
        portal.release()
        result = child.stop_within(IMPATIENT + CANCELLING_SECONDS + 4)

    assert_one_line(result, "stopped by SIGTERM", code=1)
    assert '"code": "stopped"' in result.stdout


def test_mail_in_flight_may_be_repeated(commands: Commands) -> None:
    """It keeps its lease, and the repeat has a note. The other mails are due at once."""
    commands.add_mentors(3, expires_on=SOON)
    log = "FROM cert_notification_log GROUP BY 1, 2 ORDER BY 1, 2"

    with ScriptedServer({"END": Fault.HANG}) as server:
        mail = {"NOTIFY_URL": f"smtp://127.0.0.1:{server.port}"}
        with commands.start("run", grace=IMPATIENT, **mail) as child:
            until(lambda: server.bodies)
            result = child.stop_within()

        commands.assert_stopped(result)
        is_held, is_free = "claim_token IS NOT NULL AND next_attempt_at > now() AND attempts = 1", "attempts = 0"
        is_free += " AND claim_token IS NULL AND next_attempt_at <= now()"
        assert commands.rows(f"SELECT {is_held}, {is_free}, count(*) {log}") == [(False, True, 2), (True, False, 1)]

        server.answers = {}
        make_due(commands.facts, "cert_notification_log")  # 15 minutes later
        commands.assert_completes("run", **mail)
        assert len(server.bodies) == 1 + 3
    assert commands.rows(f"SELECT status, maybe_sent, count(*) {log}") == [("sent", False, 2), ("sent", True, 1)]


def test_closed_terminal_stops_a_run_that_is_recorded(commands: Commands, portal: PortalServer) -> None:
    """An ssh session drops. The run is recorded, and the monitor gets its end."""
    commands.add_mentors(6, portal="dynamics")
    portal.default = hang()
    master, slave = pty.openpty()
    terminal = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    with ping_host() as monitor, commands.start("run", PING_URL=monitor.url, grace=IMPATIENT, **terminal) as child:
        os.close(slave)
        portal.wait_until(lambda: len(portal.requests) == 4)
        os.close(master)

        assert child.finish(timeout_seconds=WITHIN_SECONDS).returncode == 1
    assert monitor.told == ["fail"]
    commands.assert_recorded()
    assert len(commands.leased()) == 4


def test_nohup_outlasts_the_terminal(commands: Commands, portal: PortalServer) -> None:
    """A command that starts with SIGHUP ignored keeps ignoring it."""
    commands.add_mentors(1, portal="dynamics")
    portal.default = hang(ok())

    with commands.start("run", ignored=signal.SIGHUP) as child:
        portal.wait_until(lambda: len(portal.requests) == 1)
        child.signal(signal.SIGHUP)
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "exit_code", "outcome", "reason"),
    [
        pytest.param(OSError(errno.EBADF, "Bad file"), 1, "failed", "stopped by a signal", id="foreign error"),
        pytest.param(MentorBusyError("M1 is locked"), 3, "attention", "M1 is locked", id="own error"),
    ],
)
def test_signal_is_the_reason_of_later_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    exit_code: int,
    outcome: str,
    reason: str,
) -> None:
    """An interrupted wait may cause other errors. certjob's own errors are still reported."""
    monkeypatch.setattr("certjob.settings.load_settings", mock.Mock(side_effect=error))
    stop = StopFlag()
    stop.set()

    assert entry.run(["status", "--json"], stop=stop) == exit_code
    out, err = capsys.readouterr()
    assert (json.loads(out)["outcome"], err.startswith(f"certjob status: {reason}")) == (outcome, True)


def test_second_signal_in_the_first_handler_leaves_the_alarm_set() -> None:
    """The interrupted code may wait again, for a silent database."""
    script = (
        "import os, signal, time\n"
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
        "    print(signal.getitimer(signal.ITIMER_REAL)[0] > 0)\n"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_stop_flag_interrupts_waits_until_the_command_ends() -> None:
    """Its alarm is cancelled then, because it would kill the interpreter during its shutdown."""
    flag = StopFlag()
    with flag.interruptible():
        inside = flag.breaks_off
    assert (inside, flag.breaks_off) == (True, False)

    flag.set()
    for use in (flag.check, lambda: flag.sleep(60), lambda: flag.interruptible().__enter__()):
        with pytest.raises(StoppedBySignalError):
            use()
    signal.setitimer(signal.ITIMER_REAL, 3600)
    flag.end()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
