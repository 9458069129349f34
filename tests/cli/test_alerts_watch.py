"""`certjob alerts --watch`: shows what changes, says what it cannot see, and ends with Ctrl-C."""

import io
import os
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from threading import Event
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
from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.stopping import Interrupted, StopFlag
from certjob.views.alerts import Alerts
from certjob.views.open_pushes import OpenPush
from tests.support.command_line import without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.intents import backlog
from tests.support.nights import in_background
from tests.support.stalling_proxy import StallingProxy
from tests.support.waiting import until

VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"
OSLO = ZoneInfo("Europe/Oslo")
MORNING = datetime(2026, 11, 25, 7, 0, tzinfo=UTC)
"""Eight in Oslo."""
FOOTER = "checked 08:00:00; every 2 s; Ctrl-C ends"
TO_ALTERNATE_SCREEN, FROM_ALTERNATE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"


def push(full_name: str = "Kari Nordmann", **changes: Any) -> OpenPush:
    """A mentor who may still be visible."""
    values: dict[str, Any] = {
        "event_id": 1,
        "mentor_id": UUID(int=7),
        "organisation_id": UUID(int=1),
        "organisation": "hlf",
        "member_no": "M1001",
        "full_name": full_name,
        "visible": False,
        "sentence": VISIBLE,
        "error": "the portal answered 404 contact_not_found",
        "code": "contact_not_found",
        "calls": 1,
        "wanted_at": MORNING - timedelta(days=2),
        "failing_since": MORNING,
        "last_failed_at": MORNING,
        "status": "blocked",
        "rounds": 1,
        "next_attempt_at": MORNING,
        "failure_kind": "permanent",
        "is_claimed": False,
        "has_contact_id": True,
        "has_new_contact_id": False,
    }
    return OpenPush(**values | changes)


CLEAR = Alerts()
ONE = Alerts(pushes=[push()])
TWO = Alerts(pushes=[push(), push("Ola Nordmann")])


def asked(stop: StopFlag, name: str = "SIGINT") -> None:
    """What a signal's handler does while nothing is broken off."""
    stop.signal_name = name
    stop.set()


class Watch:
    """A watch whose time passes in the test: each wait calls the next step; after the last one Ctrl-C is pressed."""

    def __init__(self, connection: Connection, *, reconnect: Callable[[], Connection] | None = None) -> None:
        self.connection = connection
        self.stop = StopFlag()
        self.now = MORNING
        self.waits: list[float] = []
        self.days: list[date] = []
        self._reconnect = reconnect

    def run(
        self, *steps: Callable[[], object], output: Output | None = None, signal_name: str = "SIGINT", **more: Any
    ) -> int:
        left = list(steps)

        def wait(seconds: float) -> None:
            self.waits.append(seconds)
            if left:
                left.pop(0)()
            else:
                asked(self.stop, signal_name)

        return watch_alerts(
            output or Output(quiet=False),
            self.connection,
            reconnect=self._reconnect or self._no_reconnect,
            today=lambda: TODAY + timedelta(days=len(self.days)),
            zone=OSLO,
            stop=self.stop,
            now=lambda: self.now,
            wait=wait,
            **more,
        )

    def show(self, *results: Alerts | BaseException, output: Output | None = None, signal_name: str = "SIGINT") -> int:
        """Run it on what the database is to answer, refresh by refresh."""
        answers = iter(results)

        def read(_connection: Connection, *, today: date) -> Alerts:
            self.days.append(today)
            answer = next(answers)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return self.run(*[_nothing] * (len(results) - 1), output=output, signal_name=signal_name, read=read)

    @staticmethod
    def _no_reconnect() -> Connection:
        pytest.fail("nothing was wrong with the connection")


def _nothing() -> None:
    pass


@pytest.fixture
def watch(connection: Connection) -> Watch:
    return Watch(connection)


def window(*, columns: int = 100, lines: int = 40) -> tuple[Output, Callable[[], list[str]]]:
    """An output on a terminal of this size, and the screens it was shown, one after the other."""
    output, shown = Output(quiet=False), io.StringIO()
    output.on_terminal = True
    output.out = Console(
        file=shown,
        width=columns,
        height=lines,
        force_terminal=True,
        color_system=None,
        emoji=False,
        highlight=False,
        _environ={"TERM": "xterm"},
    )

    def screens() -> list[str]:
        return [
            "\n".join(line.rstrip() for line in without_escapes(screen).splitlines()).rstrip()
            for screen in shown.getvalue().split("\x1b[H")[1:]
            if without_escapes(screen).strip()
        ]

    return output, screens


# Off a terminal.


def test_lines_are_printed_when_they_change_and_only_then(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, whole, each leaving at once; one line when all is clear. Time that passes is no change."""
    flushed: list[str] = []

    class Pipe(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    monkeypatch.setattr("sys.stdout", Pipe())
    hostile = Alerts(pushes=[push("\x1b[2J\nNothing needs a person.")])
    results = [ONE, ONE, TWO, ONE, CLEAR, CLEAR, hostile]

    def read(_connection: Connection, **_today: date) -> Alerts:
        watch.now += timedelta(hours=1)
        return results.pop(0)

    watch.run(*[_nothing] * 6, read=read)

    kari, ola = (f"{VISIBLE}: {name} (M1001 of hlf), since" for name in ("Kari Nordmann", "Ola Nordmann"))
    *lines, last = flushed[-1].splitlines()
    assert [line.partition(" 2026-11-23 08:00, ")[0] for line in lines] == [kari, kari, ola, kari, NOTHING]
    assert "\ufffd[2J Nothing" in last
    assert last.isprintable()
    assert flushed[0].count("\n") == 1
    assert set(watch.waits) == {2.0}


# The end.


def test_ctrl_c_ends_with_the_code_of_what_was_shown_last(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the ordinary way out: no word about it."""
    assert watch.show(CLEAR, ONE) == 3
    watch.stop = StopFlag()
    assert watch.show(ONE, CLEAR) == 0
    assert capsys.readouterr().err == ""


def test_ctrl_c_ends_a_read_that_hangs(watch: Watch) -> None:
    """The signal breaks it off; the code is that of the page before, and no clock is left to run."""

    def hang() -> Alerts:
        assert watch.stop.breaks_off
        asked(watch.stop)
        raise Interrupted

    answers = iter([lambda: ONE, hang])

    assert watch.run(_nothing, read=lambda _connection, **_: next(answers)()) == 3
    assert watch.stop.is_over


def test_any_other_end_is_an_error_as_everywhere(watch: Watch) -> None:
    """SIGTERM, whatever was on the page; Ctrl-C before anything was shown: nobody knows whether all is clear."""
    with pytest.raises(StoppedBySignalError, match="stopped by SIGTERM"):
        watch.show(ONE, signal_name="SIGTERM")
    watch.stop = StopFlag()
    with pytest.raises(StoppedBySignalError):
        watch.show(psycopg.OperationalError("server closed the connection unexpectedly"))
    watch.stop = StopFlag()
    with pytest.raises(psycopg.errors.InsufficientPrivilege):  # no waiting mends a right that was taken away
        watch.show(CLEAR, psycopg.errors.InsufficientPrivilege("permission denied for view portal_alerts"))


def test_a_reader_who_went_away_ends_it(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    """`certjob alerts --watch | head -1` does not run for ever."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as unread:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", forgiving(unread))
        code = watch.show(ONE, CLEAR)

    assert (code, watch.waits) == (3, [])


# A database that goes away.


def terminate(facts: Facts, connection: Connection) -> None:
    """End a session as a restart of the server does."""
    pid = connection.info.backend_pid
    facts.connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
    until(lambda: not facts.rows("SELECT FROM pg_stat_activity WHERE pid = %s", pid))


@pytest.fixture
def watched(database_url: str) -> Iterator[Connection]:
    """The connection of the watch; the test looks on through another one."""
    with database.connect(database_url) as connection:
        yield connection


def test_a_connection_that_is_lost_is_said_and_made_anew(
    watched: Connection, facts: Facts, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line when it is lost, one when it is back; what changed meanwhile is shown; nothing is left open."""
    made: list[Connection] = []
    refusals = iter([DatabaseUnavailableError("the database cannot be reached: refused; check the host")] * 2)

    def reconnect() -> Connection:
        for refusal in refusals:
            raise refusal
        made.append(database.connect(database_url))
        return made[-1]

    watch = Watch(watched, reconnect=reconnect)

    code = watch.run(
        lambda: terminate(facts, watched),
        _nothing,
        _nothing,
        lambda: _make_old(facts),
        _nothing,
    )

    out, err = capsys.readouterr()
    assert out.splitlines()[0] == NOTHING
    assert out.splitlines()[1].startswith(f"{VISIBLE}: ")
    first, second, third = err.splitlines()
    assert first.startswith("certjob alerts: the database does not answer: ")
    assert first.endswith("; trying again")
    assert second == "certjob alerts: the database does not answer: refused; check the host; trying again"
    assert third == "certjob alerts: the database answers again"
    assert (code, len(made), made[0].closed) == (3, 1, True)


def test_a_connection_made_anew_that_stalls_is_said(
    watched: Connection,
    facts: Facts,
    database_url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Off a terminal nothing else would tell that the lines are old."""
    monkeypatch.setattr(alerts_watch, "SILENCE_SECONDS", 0.5)

    with StallingProxy(database_url, at=b"FROM attention") as proxy:
        fresh = iter([proxy.url, database_url])
        watch = Watch(watched, reconnect=lambda: database.connect(next(fresh)))
        watch.run(lambda: terminate(facts, watched), _nothing, _nothing)

    lines = capsys.readouterr().err.splitlines()
    assert "does not answer any more" in lines[1]
    assert lines[2] == "certjob alerts: the database answers again"


def _make_old(facts: Facts) -> None:
    backlog(facts, 1)
    facts.connection.execute("UPDATE portal_sync_events SET wanted_at = now() - interval '2 hours'")


def test_a_statement_that_is_cancelled_keeps_the_connection(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said and asked again; nothing is opened anew."""
    watch.show(CLEAR, psycopg.errors.QueryCanceled("canceling statement due to statement timeout"), CLEAR)

    assert "does not answer: canceling statement due to statement timeout; trying again" in capsys.readouterr().err


def test_nothing_is_kept_open_between_two_looks(watched: Connection, facts: Facts) -> None:
    """No transaction, no snapshot, no prepared statement, no lock: it works through a pooler, and vacuum goes on."""
    pid = watched.info.backend_pid
    seen: list[tuple[object, ...]] = []

    def look() -> None:
        seen.extend(
            facts.rows(
                "SELECT state, xact_start, backend_xmin, (SELECT count(*) FROM pg_locks WHERE pid = a.pid)"
                " FROM pg_stat_activity AS a WHERE pid = %s",
                pid,
            )
        )

    Watch(watched).run(*[look] * 8)

    assert seen == [("idle", None, None, 0)] * 8
    assert watched.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


# On a terminal.


def test_on_a_terminal_the_page_is_refreshed_on_a_screen_of_its_own(watch: Watch) -> None:
    """The page and when it was checked, each time of that day; afterwards the terminal is as it was."""
    output, screens = window()

    code = watch.show(ONE, TWO, CLEAR, output=output)

    one, two, clear = screens()[:3]
    assert one.startswith("1 mentor may STILL BE VISIBLE on the portal, and must not be\n")
    assert one.endswith(FOOTER)
    assert "- Ola Nordmann (M1001 of hlf)" in two
    assert clear.split("\n")[0] == NOTHING
    assert clear.split("\n")[1] == FOOTER
    raw = output.out.file.getvalue()  # type: ignore[attr-defined]
    assert raw.startswith(TO_ALTERNATE_SCREEN)
    assert FROM_ALTERNATE_SCREEN in raw.rpartition("\x1b[H")[2]
    assert (code, watch.days) == (0, [TODAY, TODAY + timedelta(days=1), TODAY + timedelta(days=2)])


@pytest.mark.parametrize(("lines", "columns"), [(24, 80), (18, 100), (3, 100), (1, 20)])
def test_a_page_that_is_too_long_is_cut_and_the_rest_counted(watch: Watch, lines: int, columns: int) -> None:
    """The most harmful stays; the footer, too."""
    output, screens = window(lines=lines, columns=columns)
    causes: list[dict[str, Any]] = [
        {},
        {"status": "pending", "failure_kind": "transient", "code": "portal_failed"},
        {"has_contact_id": False},
    ]
    pushes = [push(f"Name{number}", **causes[number % 3]) for number in range(90)]

    watch.show(Alerts(pushes=pushes), output=output)

    screen = screens()[0].split("\n")
    assert len(screen) <= lines
    if lines < 3:
        return
    assert screen[-1] == FOOTER
    *named, more = screen[:-1]
    assert more.startswith("… and ")
    told = sum(int(line.split()[2]) for line in screen if line.strip().startswith("… and "))
    assert told + sum("- Name" in line for line in named) == 90


def test_an_outage_is_said_below_the_last_page(watch: Watch) -> None:
    """What was known stays readable, with its time; before the first page it does not look like all clear."""
    output, screens = window(lines=24)
    lost = psycopg.OperationalError("server closed the connection unexpectedly\n\tsee [/] the log")

    watch.show(DatabaseUnavailableError("the database cannot be reached: no route"), ONE, lost, TWO, output=output)

    first, _, outage, back = screens()[:4]
    *page, said, footer = outage.split("\n")
    assert first == "the database does not answer: no route; trying again\nasking the database; every 2 s; Ctrl-C ends"
    assert page[0].startswith("1 mentor may STILL BE VISIBLE")
    assert said.startswith("the database does not answer: server closed the connection unexpectedly see [/] the log")
    assert footer == FOOTER
    assert "does not answer" not in back


def test_a_page_that_cannot_be_refreshed_says_how_old_it_is(watch: Watch) -> None:
    """A network that swallows everything: the look hangs, and the page must not seem fresh meanwhile."""
    output, screens = window()
    hangs, goes_on = Event(), Event()

    def read(_connection: Connection, *, today: date) -> Alerts:
        del today
        if watch.waits:
            hangs.set()
            assert goes_on.wait(60)
        return ONE

    with in_background(lambda: watch.run(_nothing, output=output, read=read)):
        assert hangs.wait(60)
        watch.now = MORNING + timedelta(seconds=45)
        until(lambda: any("checked 08:00:00, 45 s ago: THIS PAGE IS OLD" in screen for screen in screens()))
        goes_on.set()


def test_a_terminal_that_knows_no_orders_gets_lines(watch: Watch, capsys: pytest.CaptureFixture[str]) -> None:
    """TERM=dumb, as in an editor's shell."""
    output, screens = window()
    output.out._environ = {"TERM": "dumb"}

    watch.show(ONE, output=output)

    assert screens() == []
    assert capsys.readouterr().out.startswith(f"{VISIBLE}: ")
