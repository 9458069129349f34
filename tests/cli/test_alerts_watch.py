"""`certjob alerts --watch`: shows what changes, says what it cannot see, and ends with Ctrl-C."""

import io
import os
import pty
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from rich.console import Console

from certjob import database
from certjob.cli.pages import alerts_watch
from certjob.cli.pages.alerts import NOTHING
from certjob.cli.pages.alerts_watch import watch_alerts
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.streams import forgiving
from certjob.database import NO_ANSWER, Connection
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError, UsageError
from certjob.stopping import Interrupted, StopFlag
from certjob.views.alerts import Alerts
from certjob.views.open_pushes import OpenPush
from tests.support.command_line import without_escapes
from tests.support.facts import Facts
from tests.support.intents import backlog
from tests.support.proxy import StallingProxy
from tests.support.waiting import until

VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"
MORNING = datetime(2026, 11, 25, 7, 0, tzinfo=UTC)
"""Eight in Oslo."""
HEADING = "checked at 08:00:00; Ctrl-C ends"
OSLO = ZoneInfo("Europe/Oslo")
TO_ALTERNATE_SCREEN, FROM_ALTERNATE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"


def push(full_name: str = "Kari Nordmann", **changes: Any) -> OpenPush:
    """A mentor who may still be visible."""
    times = dict.fromkeys(("failing_since", "last_failed_at", "next_attempt_at"), MORNING)
    who = {"event_id": 1, "mentor_id": UUID(int=7), "organisation_id": UUID(int=1), "organisation": "hlf"}
    what = {"visible": False, "sentence": VISIBLE, "wanted_at": MORNING - timedelta(days=2), "calls": 1, "rounds": 1}
    why = {"error": "404", "code": "contact_not_found", "failure_kind": "permanent", "status": "blocked"}
    flags = {"is_claimed": False, "has_contact_id": True, "has_new_contact_id": False}
    values: dict[str, Any] = {"member_no": "M1001", "full_name": full_name, **times, **who, **what, **why, **flags}
    return OpenPush(**values | changes)


CLEAR = Alerts()
ONE = Alerts(pushes=[push()])
TWO = Alerts(pushes=[push(), push("Ola Nordmann")])
LOST = psycopg.OperationalError("server closed the connection unexpectedly\n\tsee [/] the log")


def nothing() -> None:
    pass


class Flag(StopFlag):
    """Each wait calls the next step; after the last one Ctrl-C is pressed."""

    def __init__(self, steps: list[Callable[[], object]], *, signal_name: str) -> None:
        super().__init__()
        self.waits: list[float | None] = []
        self._steps = steps
        self._signal_name = signal_name

    def ask(self) -> None:
        """Do what a signal's handler does while nothing is broken off."""
        self.signal_name = self._signal_name
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        if self._steps:
            self._steps.pop(0)()
        else:
            self.ask()
        return self.is_set()


class Watch:
    """A watch whose time passes in the test."""

    def __init__(
        self,
        connection: Connection,
        *,
        monkeypatch: pytest.MonkeyPatch | None = None,
    ) -> None:
        self.connection = connection
        self._url = connection.url
        self.now = MORNING
        self.days: list[date] = []
        self._monkeypatch = monkeypatch

    def run(self, *steps: Callable[[], object], output: Output | None = None, signal_name: str = "SIGINT") -> int:
        self.stop = Flag(list(steps), signal_name=signal_name)
        if self.connection.closed:  # the run before has closed it
            self.connection = database.connect(self._url)
        return watch_alerts(
            output or window()[0],
            self.connection,
            now=lambda: self.now.astimezone(OSLO),
            stop=self.stop,
        )

    def show(self, *results: Alerts | BaseException | Callable[[], Alerts], hours: int = 0, **more: Any) -> int:
        """Run it on what the database is to answer, refresh by refresh; so much time passes between them."""
        answers = iter(results)

        def read(_connection: Connection, *, today: date) -> Alerts:
            self.days.append(today)
            self.now += timedelta(hours=hours)
            answer = next(answers)
            if isinstance(answer, BaseException):
                raise answer
            return answer if isinstance(answer, Alerts) else answer()

        assert self._monkeypatch is not None
        self._monkeypatch.setattr(alerts_watch, "read_alerts", read)
        return self.run(*[nothing] * (len(results) - 1), **more)


@pytest.fixture
def watched(database_url: str) -> Iterator[Connection]:
    """The connection of the watch; the test looks on through another one."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def watch(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Each run closes its connection at the end; nothing is ever wrong with it before."""
    return Watch(database.connect(database_url), monkeypatch=monkeypatch)


def window(*, columns: int = 100, lines: int = 40) -> tuple[Output, Callable[[], list[str]]]:
    """An output on a terminal of this size, and the screens it was shown, one after the other."""
    output, shown = Output(quiet=False), io.StringIO()
    output.on_terminal = True
    looks: dict[str, Any] = {"color_system": None, "emoji": False, "highlight": False, "_environ": {"TERM": "xterm"}}
    output.out = Console(file=shown, width=columns, height=lines, force_terminal=True, **looks)

    def screens() -> list[str]:
        return [
            "\n".join(line.rstrip() for line in without_escapes(screen).splitlines()).rstrip()
            for screen in shown.getvalue().split("\x1b[H")[1:]
            if without_escapes(screen).strip()
        ]

    return output, screens


def test_ctrl_c_ends_with_the_code_of_what_was_shown_last(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    """The ordinary way out: no word about it. It breaks off a read that hangs, and leaves no clock to run."""

    def hang() -> Alerts:
        assert watch.stop.breaks_off
        watch.stop.ask()
        raise Interrupted

    assert watch.show(CLEAR, ONE) == 3
    assert watch.show(ONE, CLEAR) == 0
    assert watch.show(ONE, hang) == 3
    assert watch.stop.is_over
    assert capsys.readouterr().err == ""


def test_any_other_end_is_an_error_as_everywhere(watch: Watch) -> None:
    """SIGTERM, whatever was on the page; Ctrl-C before anything was shown: nobody knows whether all is clear."""
    with pytest.raises(StoppedBySignalError, match="stopped by SIGTERM"):
        watch.show(ONE, signal_name="SIGTERM")
    with pytest.raises(StoppedBySignalError):
        watch.show(LOST)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):  # no waiting mends a right that was taken away
        watch.show(CLEAR, psycopg.errors.InsufficientPrivilege("permission denied for view portal_alerts"))


def test_a_terminal_that_has_gone_ends_it(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ignores SIGHUP would read for ever."""
    output, _ = window()
    reading, writing = pty.openpty()
    os.close(reading)
    with open(writing, "w") as unread:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", forgiving(unread))
        output.out.file = sys.stdout

        watch.show(ONE, output=output)

    assert not watch.stop.is_set()


def test_without_a_terminal_there_is_nothing_to_refresh(watch: Watch) -> None:
    """Nor in an editor's shell, which knows no orders."""
    dumb, _ = window()
    dumb.out._environ = {"TERM": "dumb"}
    for output in (Output(quiet=False), dumb):
        with pytest.raises(UsageError, match="--watch needs a terminal"):
            watch.run(output=output)
    watch.connection.close()


# A database that goes away.


def test_a_connection_that_is_lost_is_said_and_made_anew(
    watched: Connection, facts: Facts, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it meets, until the database is back; nothing stays open. One made anew that stalls is said, too."""
    monkeypatch.setattr(alerts_watch, "SILENCE_SECONDS", 0.5)
    made: list[Connection] = []
    connect = database.connect
    output, screens = window(columns=300)

    def lose() -> None:
        pid = watched.info.backend_pid
        facts.connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        until(lambda: not facts.rows("SELECT FROM pg_stat_activity WHERE pid = %s", pid))

    def change() -> None:
        backlog(facts, 1)
        facts.connection.execute("UPDATE portal_sync_events SET wanted_at = now() - interval '2 hours'")

    with StallingProxy(database_url, at=b"FROM attention") as proxy:
        places = iter([None, None, proxy.url, database_url])

        def reconnect(_url: str) -> Connection:
            if (url := next(places)) is None:
                message = "the database cannot be reached: refused; check the host"
                raise DatabaseUnavailableError(message)
            made.append(connect(url))
            return made[-1]

        monkeypatch.setattr(database, "connect", reconnect)
        code = Watch(watched).run(lose, nothing, nothing, change, nothing, nothing, output=output)

    _, clear, *outages, _, last = screens()[:8]
    before, after = "could not read the alerts: ", "; trying again"
    assert clear.endswith(NOTHING)
    assert VISIBLE in last
    said = [screen.splitlines()[1].removeprefix(before).removesuffix(after) for screen in outages]
    assert said[0].startswith("terminating connection")
    assert said[1:] == ["the database cannot be reached: refused; check the host"] * 2 + [NO_ANSWER]
    assert (code, [connection.closed for connection in made]) == (3, [True, True])


def test_connections_that_are_lost_again_and_again_leave_nothing_behind(watched: Connection, facts: Facts) -> None:
    """A pooler that lets in while the server is away: a thread for each try would be thousands in a night."""

    def watchers() -> int:
        return sum(thread.name == "silence" for thread in threading.enumerate())

    def lose() -> None:
        facts.connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    before = watchers()

    def few() -> None:
        until(lambda: watchers() <= before + 2)

    Watch(watched).run(*[lose, nothing] * 6, few)


def test_a_table_that_is_locked_for_long_collects_no_sessions(
    watched: Connection, facts: Facts, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the lock ends before its session is given up, and the session is kept."""
    monkeypatch.setattr(alerts_watch, "LOCK_TIMEOUT_MS", 100)
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    output, screens = window()
    with database.connect(database_url) as other:

        def lock() -> None:
            other.execute("BEGIN")
            other.execute("LOCK TABLE review_problems")

        def look() -> None:
            assert facts.rows(waiting) == []
            other.execute("ROLLBACK")

        Watch(watched).run(lock, look, nothing, output=output)

    said = "could not read the alerts: canceling statement due to lock timeout; trying again"
    assert [said in screen for screen in screens()[1:5]] == [False, True, False, False]


def test_nothing_is_kept_open_between_two_looks(watched: Connection, facts: Facts) -> None:
    """No transaction, no snapshot, no prepared statement, no lock: it works through a pooler, and vacuum goes on."""
    state = (
        "SELECT state, xact_start, backend_xmin, (SELECT count(*) FROM pg_locks WHERE pid = a.pid)"
        " FROM pg_stat_activity AS a WHERE pid = %s"
    )
    seen: list[tuple[object, ...]] = []

    def look() -> None:
        seen.extend(facts.rows(state, watched.info.backend_pid))
        if len(seen) == 8:
            assert watched.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)

    Watch(watched).run(*[look] * 8)

    assert seen == [("idle", None, None, 0)] * 8


# The screen.


def test_the_page_is_refreshed_on_a_screen_of_its_own(watch: Watch) -> None:
    """The page and when it was checked, each time of that day; afterwards the terminal is as it was.

    An outage is said below the last page, which stays readable; before the first it does not look like all clear. A
    statement that is cancelled keeps the connection. Tabs and markup in what went wrong disturb nothing.
    """
    output, screens = window()
    timeout = psycopg.errors.QueryCanceled("canceling statement due to statement timeout")
    away = DatabaseUnavailableError("the database cannot be reached: no route")

    code = watch.show(away, ONE, LOST, TWO, timeout, CLEAR, output=output, hours=24)

    asking, first, one, outage, two, cancelled, clear = screens()[:7]
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
    raw = output.out.file.getvalue()  # type: ignore[attr-defined]
    assert raw.startswith(TO_ALTERNATE_SCREEN)
    assert FROM_ALTERNATE_SCREEN in raw.rpartition("\x1b[H")[2]
    assert (code, watch.days) == (0, [(MORNING + timedelta(days=number)).date() for number in range(6)])


@pytest.mark.parametrize(("lines", "columns"), [(24, 80), (18, 100), (3, 100), (1, 20)])
def test_a_page_that_is_too_long_is_cut_and_says_so(watch: Watch, lines: int, columns: int) -> None:
    """The most harmful stays; so does the line that says how old it is, and that there is more."""
    output, screens = window(lines=lines, columns=columns)
    alerts = Alerts(pushes=[push(f"Name{number}") for number in range(90)])

    watch.show(alerts, output=output)

    screen = screens()[1].split("\n")
    assert len(screen) <= lines
    assert screen[0].startswith(f"{HEADING}; cut short: `certjob alerts` shows it all"[: columns - 1])
    assert ["90 mentors may STILL BE VISIBLE" in line for line in screen[1:2]] == [True] * (lines > 1)
