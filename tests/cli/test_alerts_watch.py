"""`certjob alerts --watch`: shows what changes, says what it cannot see, and ends with Ctrl-C."""

import os
import pty
import sys
import threading
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from certjob import database
from certjob.cli.pages import alerts_watch
from certjob.cli.pages.alerts import NOTHING
from certjob.cli.terminal.streams import forgiving
from certjob.database import NO_ANSWER, Connection
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.reports.alerts import Alerts
from certjob.stopping import Interrupted, StopFlag
from tests.cli.conftest import MORNING, push
from tests.support.command_line import run_in_process, without_escapes
from tests.support.facts import Facts
from tests.support.proxy import StallingProxy
from tests.support.terminals import terminal
from tests.support.waiting import until

HEADING = "checked at 08:00:00; Ctrl-C ends"
TO_ALTERNATE_SCREEN, FROM_ALTERNATE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
CLEAR = Alerts()
ONE = Alerts(pushes=[push()])
TWO = Alerts(pushes=[push(), push("Ola Nordmann")])
LOST = psycopg.OperationalError("server closed the connection unexpectedly\n\tsee [/] the log")


Make = Callable[..., "Watch"]


def nothing() -> None:
    pass


class Watch(StopFlag):
    """A watch each of whose waits does the next step instead; after the last one somebody presses Ctrl-C."""

    def __init__(
        self, connection: Connection, *steps: Callable[[], object], columns: int = 100, lines: int = 40
    ) -> None:
        super().__init__()
        self.connection, self.steps = connection, iter(steps)
        self.now, self.ends_by, self.days = MORNING.astimezone(ZoneInfo("Europe/Oslo")), "SIGINT", list[date]()
        self.output, self.shown = terminal(columns, lines)

    def ask(self) -> None:
        """Do what a signal's handler does while nothing is broken off."""
        self.signal_name = self.ends_by
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        next(self.steps, self.ask)()
        return self.is_set()

    def run(self) -> int:
        return alerts_watch.watch_alerts(self.output, self.connection, now=lambda: self.now, stop=self)

    def screens(self) -> list[str]:
        """What was shown, one screen after the other."""
        screens = map(without_escapes, self.shown.getvalue().split("\x1b[H")[1:])
        return ["\n".join(map(str.rstrip, screen.splitlines())).rstrip() for screen in screens if screen.strip()]


@pytest.fixture
def watch(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Make a watch that the database answers so, one day after the other; an error is raised."""

    def make(*answers: Alerts | BaseException, **more: Any) -> Watch:
        left = iter(answers)
        watch = Watch(database.connect(connection.url), *[nothing] * (len(answers) - 1), **more)

        def read(_connection: Connection, *, today: date) -> Alerts:
            watch.days.append(today)
            watch.now += timedelta(days=1)
            answer = next(left)
            if isinstance(answer, Interrupted):
                assert watch.breaks_off
                watch.ask()
            if isinstance(answer, BaseException):
                raise answer
            return answer

        monkeypatch.setattr(alerts_watch, "read_alerts", read)
        return watch

    return make


# How it ends.


def test_ctrl_c_ends_with_the_code_of_what_was_shown_last(watch: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """The ordinary way out: no word about it. It breaks off a read that hangs, and leaves no clock to run."""
    for answers, code in (((CLEAR, ONE), 3), ((ONE, CLEAR), 0), ((ONE, Interrupted()), 3)):
        watching = watch(*answers)
        assert (watching.run(), watching.is_over) == (code, True)
    assert capsys.readouterr().err == ""


def test_any_other_end_is_an_error_as_everywhere(watch: Make) -> None:
    """SIGTERM, whatever was on the page; Ctrl-C before anything was shown: nobody knows whether all is clear."""
    terminated = watch(ONE)
    terminated.ends_by = "SIGTERM"
    with pytest.raises(StoppedBySignalError, match="stopped by SIGTERM"):
        terminated.run()
    with pytest.raises(StoppedBySignalError):
        watch(LOST).run()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):  # no waiting mends a right that was taken away
        watch(CLEAR, psycopg.errors.InsufficientPrivilege("permission denied for view portal_alerts")).run()


def test_a_terminal_that_has_gone_ends_it(watch: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ignores SIGHUP would read for ever."""
    watching = watch(ONE)
    reading, writing = pty.openpty()
    os.close(reading)
    with open(writing, "w") as unread:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", forgiving(unread))
        watching.output.out.file = sys.stdout
        watching.run()

    assert not watching.is_set()


def test_without_a_terminal_there_is_nothing_to_refresh(environment: dict[str, str], tmp_path: Path) -> None:
    """Nor in an editor's shell, which knows no orders."""
    for columns in (None, 100):
        result = run_in_process("alerts", "--watch", environment=environment, folder=tmp_path, columns=columns)
        assert (result.returncode, "--watch needs a terminal" in result.stderr + result.stdout) == (2, True)


# The database.


def test_one_that_is_silent_is_said_and_asked_again_in_another_session(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first session and those made anew."""
    monkeypatch.setattr(alerts_watch, "SILENCE_SECONDS", 0.5)
    with StallingProxy(database_url, at=b"FROM attention") as proxy:
        watching = Watch(database.connect(proxy.url), proxy.is_silent.clear)
        with pytest.raises(StoppedBySignalError):
            watching.run()

    assert [NO_ANSWER in screen for screen in watching.screens()[1:3]] == [True, True]


def test_connections_that_are_lost_again_and_again_leave_nothing_behind(facts: Facts, database_url: str) -> None:
    """A pooler that lets in while the server is away: a thread for each try would be thousands in a night."""

    def watchers() -> int:
        return sum(thread.name == "silence" for thread in threading.enumerate())

    def lose() -> None:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        facts.connection.execute(f"SELECT pg_terminate_backend(pid) {others}".encode())

    before = watchers()
    Watch(database.connect(database_url), *[lose, nothing] * 6, lambda: until(lambda: watchers() <= before + 2)).run()


def test_a_table_that_is_locked_for_long_collects_no_sessions(
    facts: Facts, app: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the lock ends before its session is given up, and the session is kept."""
    monkeypatch.setattr(alerts_watch, "LOCK_TIMEOUT_MS", 100)
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

    def look() -> None:
        assert facts.rows(waiting) == []
        app.rollback()

    watching = Watch(database.connect(database_url), lambda: app.execute("LOCK TABLE review_problems"), look, nothing)
    watching.run()

    said = "could not read the alerts: canceling statement due to lock timeout; trying again"
    assert [said in screen for screen in watching.screens()[1:5]] == [False, True, False, False]


def test_nothing_is_kept_open_between_two_looks(facts: Facts, database_url: str) -> None:
    """No transaction, no snapshot, no prepared statement, no lock: it works through a pooler, and vacuum goes on."""
    session = database.connect(database_url)
    locks = "(SELECT count(*) FROM pg_locks WHERE pid = a.pid)"
    state = f"SELECT state, xact_start, backend_xmin, {locks} FROM pg_stat_activity AS a WHERE pid = %s"
    seen: list[tuple[object, ...]] = []

    def look() -> None:
        seen.extend(facts.rows(state, session.info.backend_pid))
        if len(seen) == 8:
            assert session.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)

    Watch(session, *[look] * 8).run()

    assert seen == [("idle", None, None, 0)] * 8


# The screen.


def test_the_page_is_refreshed_on_a_screen_of_its_own(watch: Make) -> None:
    """The page and when it was checked, each time of that day; afterwards the terminal is as it was.

    An outage is said below the last page, which stays readable; before the first it does not look like all clear. A
    statement that is cancelled keeps the connection. Tabs and markup in what went wrong disturb nothing.
    """
    timeout = psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
    away = DatabaseUnavailableError("the database cannot be reached: no route")
    watching = watch(away, ONE, LOST, TWO, timeout, CLEAR)

    code = watching.run()

    asking, first, one, outage, two, cancelled, clear = watching.screens()[:7]
    said = "could not read the alerts: {}; trying again"
    assert asking == "asking the database; Ctrl-C ends"
    assert first == f"Ctrl-C ends\n{said.format('the database cannot be reached: no route')}"
    assert one.startswith(f"{HEADING}\n1 mentor may STILL BE VISIBLE on the portal, and must not be\n")
    lost = said.format("server closed the connection unexpectedly see [/] the log")
    assert outage == one.replace("\n", f"\n{lost}\n", 1)
    assert "- Ola Nordmann (M1001 of hlf)" in two
    assert "could not read" not in two
    assert said.format("canceling statement due to statement timeout") in cancelled
    assert clear == f"{HEADING}\n{NOTHING}"
    raw = watching.shown.getvalue()
    assert raw.startswith(TO_ALTERNATE_SCREEN)
    assert FROM_ALTERNATE_SCREEN in raw.rpartition("\x1b[H")[2]
    assert (code, watching.days) == (0, [(MORNING + timedelta(days=number)).date() for number in range(6)])


@pytest.mark.parametrize(("lines", "columns"), [(18, 100), (1, 20)])
def test_a_page_that_is_too_long_is_cut_and_says_so(watch: Make, lines: int, columns: int) -> None:
    """The most harmful stays; so does the line that says how old it is, and that there is more."""
    watching = watch(Alerts(pushes=[push(f"Name{number}") for number in range(90)]), lines=lines, columns=columns)

    watching.run()

    screen = watching.screens()[1].split("\n")
    assert len(screen) <= lines
    assert screen[0].startswith(f"{HEADING}; cut short: `certjob alerts` shows it all"[: columns - 1])
    assert ["90 mentors may STILL BE VISIBLE" in line for line in screen[1:2]] == [True] * (lines > 1)
