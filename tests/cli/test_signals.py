"""SIGTERM, SIGINT and SIGHUP: the command ends within 10 s with one line, and the next run does the rest."""

import errno
import json
import os
import pty
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
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
from tests.conftest import installed_command
from tests.support.command_line import WITHIN_SECONDS, Child, assert_one_line, started
from tests.support.facts import Facts
from tests.support.nights import backlog, make_due
from tests.support.ping_host import ping_host
from tests.support.portal_answers import hang, ok
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import ScriptedServer, ServerFault
from tests.support.waiting import until, until_sessions

AT_ONCE_SECONDS = 4.0
"""Less than the grace, and enough for a busy machine."""
IMPATIENT = 0.5
"""A short grace in seconds."""

Start = Callable[..., AbstractContextManager[Child]]


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Start:
    """Start a command in the background, with these settings and alterations."""

    def start(*arguments: str, settings: dict[str, str] | None = None, **alterations: Any) -> Any:
        return started(*arguments, environment=environment | (settings or {}), folder=tmp_path, **alterations)

    return start


def assert_recorded(facts: Facts) -> None:
    assert facts.rows("SELECT outcome, finished_at IS NOT NULL FROM job_runs") == [("failed", True)]


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_signal_ends_a_connection_attempt_at_once(start: Start, number: signal.Signals) -> None:
    """The database host accepts the connection and does not answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        url = f"postgresql://u@127.0.0.1:{listener.getsockname()[1]}/x"
        with start("run", settings={"CERTJOB_DATABASE_URL": url}) as child:
            silent, _ = listener.accept()
            with silent:
                silent.recv(1)
                result = child.stop_within(AT_ONCE_SECONDS, number)

    assert_one_line(result, f"stopped by {number.name}", code=1)


def test_signal_ends_a_migration_that_waits_for_another(
    start: Start, facts: Facts, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    app.execute("SELECT pg_advisory_xact_lock(%s)", [migrations.LOCK_KEY])

    with start("db", "migrate") as child:
        until_sessions(facts.connection, "query = 'COMMIT'")  # it waits by polling, not for a lock
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_one_line(result, "stopped by SIGTERM", code=1, command="certjob db migrate")


def test_signal_ends_a_review_and_the_next_run_does_the_rest(
    start: Start, facts: Facts, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """The review waits for a lock, half a second for each mentor."""
    organisation = facts.organisation(portal=None)
    for _ in range(10):
        facts.certified_mentor(organisation, LONG_AGO)
    app.execute("LOCK TABLE certificate_transitions")

    with start("run") as child:
        until_sessions(facts.connection, "wait_event_type = 'Lock'")
        result = child.stop_within(AT_ONCE_SECONDS)

    assert_one_line(result, "stopped by SIGTERM", "the next run does the rest", code=1)
    assert_recorded(facts)
    until_sessions(facts.connection, "true", count=0)
    app.rollback()
    assert facts.rows("SELECT FROM mentor_pauses") == []
    with start("run") as child:
        assert child.finish().returncode == 0
    assert len(facts.rows("SELECT FROM mentor_pauses")) == 10


def test_signal_leaves_a_lease_on_the_mail_in_flight(start: Start, facts: Facts) -> None:
    """Its repeat has a note. The other mail is due at once."""
    organisation = facts.organisation(portal=None)
    for _ in range(2):
        facts.certified_mentor(organisation, SOON)

    with ScriptedServer({"END": ServerFault.HANG}) as server:
        smtp = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}"}
        with start("run", settings=smtp, grace=IMPATIENT) as child:
            until(lambda: server.bodies)
            result = child.stop_within()
        assert_one_line(result, "stopped by SIGTERM", code=1)
        lease = "BETWEEN now() + interval '14 minutes' AND now() + interval '15 minutes'"
        leased = f"SELECT next_attempt_at {lease} FROM cert_notification_log ORDER BY 1"
        assert facts.rows(leased) == [(False,), (True,)]

        server.answers = {}
        make_due(facts, "cert_notification_log")  # 15 minutes later
        with start("run", settings=smtp) as child:
            assert child.finish().returncode == 0

    log = "SELECT status, maybe_sent FROM cert_notification_log ORDER BY 2"
    assert facts.rows(log) == [("sent", False), ("sent", True)]
    assert len(server.bodies) == 1 + 2


def test_closed_terminal_stops_a_run_that_is_recorded(start: Start, facts: Facts, portal: PortalServer) -> None:
    """An ssh session drops. The run is recorded, and the monitor gets its end."""
    backlog(facts, 1)
    portal.default = hang()
    master, slave = pty.openpty()
    terminal = dict.fromkeys(("stdin", "stdout", "stderr"), slave)

    with (
        ping_host() as monitor,
        start("run", settings={"CERTJOB_PING_URL": monitor.url}, grace=IMPATIENT, **terminal) as child,
    ):
        os.close(slave)
        portal.wait_until(lambda: len(portal.requests) == 1)
        os.close(master)
        assert child.finish(timeout_seconds=WITHIN_SECONDS).returncode == 1

    assert monitor.told == ["fail"]
    assert_recorded(facts)


def test_nohup_outlasts_the_terminal(start: Start, facts: Facts, portal: PortalServer) -> None:
    """A command that starts with SIGHUP ignored keeps ignoring it."""
    backlog(facts, 1)
    portal.default = hang(ok())

    with start("run", program=["nohup", str(installed_command())]) as child:
        portal.wait_until(lambda: len(portal.requests) == 1)
        child.signal(signal.SIGHUP)
        portal.release()
        result = child.finish()

    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "exit_code", "reason"),
    [
        (OSError(errno.EBADF, "Bad file"), 1, "stopped by a signal"),
        (MentorBusyError("M1 is locked"), 3, "M1 is locked"),
    ],
    ids=["foreign error", "own error"],
)
def test_signal_is_the_reason_of_later_foreign_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, exit_code: int, reason: str
) -> None:
    """An interrupted wait may cause other errors. certjob's own errors are still reported."""
    monkeypatch.setattr("certjob.settings.load_settings", mock.Mock(side_effect=error))
    stop = StopFlag()
    stop.set()

    assert entry.run(["status", "--json"], stop=stop) == exit_code

    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["message"] == reason
    assert err.startswith(f"certjob status: {reason}")


def test_stop_flag_interrupts_every_wait() -> None:
    flag = StopFlag()
    with flag.interruptible():
        inside = flag.breaks_off
    assert (inside, flag.breaks_off) == (True, False)

    flag.set()

    for use in (flag.check, lambda: flag.sleep(60), lambda: flag.interruptible().__enter__()):
        with pytest.raises(StoppedBySignalError):
            use()


def test_end_of_the_command_cancels_the_alarm() -> None:
    """Otherwise it would kill the interpreter during its shutdown."""
    flag = StopFlag()
    flag.set()
    signal.setitimer(signal.ITIMER_REAL, 3600)

    flag.end()

    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
