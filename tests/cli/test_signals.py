"""SIGTERM, SIGINT and SIGHUP, whatever certjob is doing: an end within 10 s, one line, nothing lost, nothing kept."""

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
"""Much less than the grace, and enough for a busy machine."""
CANCELLING_SECONDS = 10.0
"""How long psycopg tries to cancel a statement of a silent server before it closes the connection."""
IMPATIENT = 0.5
"""A grace, in seconds, for a test that waits for its end."""


class Commands:
    """Starts commands in the background, on the database of the test and its portal, without a mail server."""

    def __init__(self, facts: Facts, app: psycopg.Connection[Any], environment: dict[str, str], folder: Path) -> None:
        self.facts, self.rows, self.app, self.environment, self.folder = facts, facts.rows, app, environment, folder
        self.backends = Backends(facts.connection)
        """The children's sessions; those of the test are open already."""

    def start(self, *arguments: str, **more: Any) -> AbstractContextManager[Child]:
        """Start the command; upper-case keyword arguments are settings, the others are those of ``started``."""
        settings = {"CERTJOB_NOTIFY_URL": ""} | {
            f"CERTJOB_{name}": more.pop(name) for name in [*more] if name.isupper()
        }
        return started(*arguments, environment=self.environment | settings, folder=self.folder, **more)

    def mentors(self, count: int, *, portal: str | None = None, expires_on: date = LONG_AGO) -> None:
        """An organisation with mentors B1, B2, … who have a certificate each."""
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
        """The contacts of the events that are claimed; all others are due now."""
        rows = self.rows(
            "SELECT dynamics_contact_id, claim_token IS NOT NULL, next_attempt_at > now()"
            " FROM portal_sync_events e JOIN mentors m ON m.id = e.mentor_id WHERE status = 'pending'"
        )
        assert all(has_token == waits for _, has_token, waits in rows)
        return {contact_id for contact_id, has_token, _ in rows if has_token}

    def assert_failed(self, result: Finished, *, name: str = "SIGTERM") -> None:
        """A run was stopped, said so in a line, and is recorded as failed."""
        assert "the next run does the rest" in assert_one_line(result, f"stopped by {name}", code=1)
        self.assert_recorded()

    def assert_recorded(self) -> None:
        assert self.rows("DELETE FROM job_runs RETURNING outcome, finished_at IS NOT NULL") == [("failed", True)]

    def assert_completes(self, *arguments: str, **settings: str) -> None:
        """The next command, undisturbed, ends well."""
        with self.start(*arguments, **settings) as child:
            result = child.finish()
        assert (result.returncode, result.stderr) == (0, "")


@pytest.fixture
def commands(facts: Facts, app: psycopg.Connection[Any], environment: dict[str, str], tmp_path: Path) -> Commands:
    return Commands(facts, app, environment, tmp_path)


# What has nothing to finish.


def test_while_connecting(commands: Commands) -> None:
    """A database host that accepts the connection and says nothing: there is nothing to wait for."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        url = f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/x"
        for number in STOP_SIGNALS:
            with commands.start("run", DATABASE_URL=url) as child:
                silent, _ = listener.accept()
                with silent:
                    silent.recv(1)
                    result = child.stop_within(AT_ONCE_SECONDS, number)

            assert_one_line(result, f"stopped by {number.name}", code=1)


def test_while_it_waits_for_somebodys_lock(commands: Commands) -> None:
    """Who only looks has nothing to finish; a migration, a resync and a load have not begun.

    A run that would take half a second a mentor sees the signal between two of them.
    """
    commands.mentors(15)
    roster = "organisation,member_no,kind,issued_on,expires_on\nhlf,B1,a,2025-01-01,2027-01-01\n"
    (commands.folder / "roster.csv").write_text(roster)
    tables = "LOCK TABLE mentors, migrations"
    for lock, command, options, is_recorded in (
        (tables, "alerts", "", False),
        (tables, "run", "--dry-run", False),
        (f"SELECT pg_advisory_xact_lock({migrations._LOCK_KEY})", "db migrate", "", False),
        (tables, "load", "roster.csv", False),
        ("SELECT FROM mentors FOR UPDATE", "resync", "B1", True),
        ("LOCK TABLE certificate_transitions", "run", "", True),
    ):
        commands.app.execute(lock.encode())
        with commands.start(*command.split(), *options.split()) as child:
            if command == "db migrate":  # it has tried in vain
                commands.backends.wait_for_query("COMMIT")
            else:
                commands.backends.wait_for_query("", waiting_for="Lock")
            result = child.stop_within(AT_ONCE_SECONDS)

        assert_one_line(result, "stopped by SIGTERM", code=1, command=f"certjob {command}")
        if is_recorded:
            commands.assert_recorded()
        commands.backends.wait_until_gone()
        commands.app.rollback()

    assert commands.paused() == 0
    commands.assert_completes("db", "migrate")
    commands.assert_completes("run")
    assert commands.paused() == 15


def test_in_the_middle_and_at_the_end_of_a_big_review(commands: Commands) -> None:
    """Every mentor is reviewed wholly or not at all, and the next run has the rest."""
    commands.mentors(2000, portal="dynamics")
    commands.app.execute("SELECT FROM mentors WHERE member_no = 'B1' FOR UPDATE")
    command = ("run", "--allow", "hlf=2000")

    with commands.start(*command) as child:
        until(commands.paused)  # the first chunk is committed
        result = child.stop_within(AT_ONCE_SECONDS)

    commands.assert_failed(result)
    for table in ("certificate_transitions", "portal_sync_events"):
        assert len(commands.rows(f"SELECT FROM {table}")) == commands.paused()

    with commands.start(*command) as child:
        until(lambda: commands.paused() == 1999 and commands.rows("SELECT FROM job_runs"))
        commands.backends.wait_for_query("COMMIT")
        result = child.stop_within(AT_ONCE_SECONDS)

    commands.assert_failed(result)
    commands.app.rollback()
    commands.assert_completes(*command)
    assert commands.paused() == 2000


# In the delivery.


def test_while_calls_to_the_portal_hang(commands: Commands, portal: PortalServer) -> None:
    """They get a few seconds to end and keep their leases; what was claimed with them and not begun is free at once.

    A person who presses Ctrl-C twice means it: at once, and still one line.
    """
    portal.default = hang()
    commands.mentors(7, portal="dynamics")

    with commands.start("run", grace=IMPATIENT) as child:
        portal.wait_until(lambda: len(portal.requests) == 4)
        result = child.stop_within()

    commands.assert_failed(result)
    assert len(portal.requests) == 4
    assert commands.leased() == {request.contact_id for request in portal.requests}

    make_due(commands.facts)  # five minutes later
    with commands.start("run") as child:
        portal.wait_until(lambda: len(portal.requests) == 8)
        child.signal(signal.SIGINT)
        result = child.stop_within(AT_ONCE_SECONDS, signal.SIGTERM)  # another one: two alike at one moment are merged

    commands.assert_failed(result, name="SIG")  # whichever of the two came last
    portal.release()
    make_due(commands.facts)
    with PortalServer(key=portal.key) as healthy:
        commands.assert_completes("run", PORTAL_URL=healthy.url)
        assert [*healthy.visible.values()] == [False] * 7
    assert commands.rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]


def test_while_the_database_stalls(commands: Commands, portal: PortalServer, database_url: str) -> None:
    """Its proxy keeps the connection and swallows the cancellation: psycopg closes the connection after 10 seconds."""
    portal.default = hang(ok())
    commands.mentors(1, portal="dynamics")

    with (
        StallingProxy(database_url) as proxy,
        commands.start("run", "--json", grace=IMPATIENT, DATABASE_URL=proxy.url) as child,
    ):
        portal.wait_until(lambda: len(portal.requests) == 1)
        proxy.is_silent.set()
        portal.release()  # its settle waits for the database, for ever
        result = child.stop_within(IMPATIENT + CANCELLING_SECONDS + 4)

    assert_one_line(result, "stopped by SIGTERM", code=1)
    assert '"code": "stopped"' in result.stdout


def test_while_the_mail_server_says_nothing(commands: Commands) -> None:
    """The message in hand keeps its lease, and says that it may be a repeat; the others are free at once."""
    commands.mentors(3, expires_on=SOON)
    log = "FROM cert_notification_log GROUP BY 1, 2 ORDER BY 1, 2"

    with ScriptedServer({"END": Fault.HANG}) as server:
        mail = {"NOTIFY_URL": f"smtp://127.0.0.1:{server.port}"}
        with commands.start("run", grace=IMPATIENT, **mail) as child:
            until(lambda: server.bodies)
            result = child.stop_within()

        commands.assert_failed(result)
        is_held, is_free = "claim_token IS NOT NULL AND next_attempt_at > now() AND attempts = 1", "attempts = 0"
        is_free += " AND claim_token IS NULL AND next_attempt_at <= now()"
        assert commands.rows(f"SELECT {is_held}, {is_free}, count(*) {log}") == [(False, True, 2), (True, False, 1)]

        server.answers = {}
        make_due(commands.facts, "cert_notification_log")  # 15 minutes later
        commands.assert_completes("run", **mail)
        assert len(server.bodies) == 1 + 3
    assert commands.rows(f"SELECT status, maybe_sent, count(*) {log}") == [("sent", False, 2), ("sent", True, 1)]


def test_when_the_terminal_has_gone(commands: Commands, portal: PortalServer) -> None:
    """The line of an ssh session drops: nobody reads any more, and yet the run is recorded and its end reported."""
    commands.mentors(6, portal="dynamics")
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
    """Who started it so that it ignores SIGHUP wants it to go on."""
    commands.mentors(1, portal="dynamics")
    portal.default = hang(ok())

    with commands.start("run", ignored=signal.SIGHUP) as child:
        portal.wait_until(lambda: len(portal.requests) == 1)
        child.signal(signal.SIGHUP)
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stderr) == (0, "")


def test_what_a_broken_off_wait_leaves_behind_is_not_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may break, too: the signal is the reason, but for what certjob says itself."""
    broken, busy = OSError(errno.EBADF, "Bad file descriptor"), MentorBusyError("M1 is locked")
    for left_behind, code, reason in ((broken, 1, "stopped by a signal"), (busy, 3, "M1 is locked")):
        outcome = {1: "failed", 3: "attention"}[code]
        stop = StopFlag()
        monkeypatch.setattr("certjob.settings.load_settings", mock.Mock(side_effect=left_behind))
        stop.set()
        assert entry.run(["status", "--json"], stop=stop) == code
        out, err = capsys.readouterr()
        assert (json.loads(out)["outcome"], err.startswith(f"certjob status: {reason}")) == (outcome, True)


# The flag itself.


def python(script: str) -> tuple[int, str, str]:
    """Run this in a process of its own, with the module and a flag that signals set."""
    begin = "import os, signal, time\nfrom certjob import stopping\nflag = stopping.stop_on_signals()\n"
    command = [sys.executable, "-c", begin + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def test_second_signal_in_the_first_handler_leaves_the_alarm_set() -> None:
    """The code that the second signal interrupts may wait again, for a silent database."""
    done = python(
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

    assert done == (0, "True\n", "")


def test_a_stop_is_seen_before_and_during_a_wait_and_its_clock_ends_with_the_command() -> None:
    """An alarm that rings while the interpreter shuts down would find no handler, and kill what ended well."""
    flag = StopFlag()
    with flag.interruptible():
        meanwhile = flag.breaks_off
    assert (meanwhile, flag.breaks_off) == (True, False)

    flag.set()
    for use in (flag.check, lambda: flag.sleep(60), lambda: flag.interruptible().__enter__()):
        with pytest.raises(StoppedBySignalError):
            use()
    signal.setitimer(signal.ITIMER_REAL, 3600)
    flag.end()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
