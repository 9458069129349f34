"""The page of alerts that keeps itself up to date until somebody presses Ctrl-C."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, tzinfo
from typing import Protocol

import psycopg
from rich.console import Group
from rich.live import Live
from rich.text import Text

from certjob.cli.pages.alerts import MOST_ROWS, NOTHING, page_lines, plain_lines
from certjob.cli.terminal.lines import fit
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.plain import harmless, print_error
from certjob.cli.terminal.streams import reader_is_gone
from certjob.database import Connection
from certjob.errors import CertjobError, StoppedBySignalError
from certjob.stopping import Interrupted, StopFlag
from certjob.views.alerts import Alerts, read_alerts

INTERVAL_SECONDS = 2.0

_LATE_SECONDS = 3 * INTERVAL_SECONDS
"""Without an answer for so long, the page says how old it is."""


def watch_alerts(
    output: Output,
    connection: Connection,
    *,
    reconnect: Callable[[], Connection],
    today: Callable[[], date],
    zone: tzinfo,
    stop: StopFlag,
    now: Callable[[], datetime],
    read: Callable[..., Alerts] = read_alerts,
    wait: Callable[[float], object] | None = None,
) -> int:
    """Show the alerts anew every two seconds until a signal; on a terminal as a page, else as lines when they change.

    SIGINT (Ctrl-C) is the ordinary end: returns the exit code of what was shown last. A database that does not answer
    is said, and asked again with the next refresh, on a connection made by ``reconnect``. ``wait`` sleeps, ``stop`` may
    cut it short. Raises StoppedBySignalError after any other signal, or when nothing could be shown at all.
    """
    wait = wait or stop.wait
    last: Alerts | None = None
    try:
        with _screen(output, zone=zone, now=now) as screen, _Source(connection, reconnect, read) as source:
            while True:
                try:
                    with stop.interruptible():
                        last = source.read(today())
                except (psycopg.OperationalError, CertjobError) as error:
                    stop.check()
                    screen.show_outage(_cause(error))
                else:
                    if not screen.show(last):
                        break
                wait(INTERVAL_SECONDS)
                stop.check()
    except (Interrupted, StoppedBySignalError):
        if stop.signal_name != "SIGINT" or last is None:
            raise
        stop.end()  # nothing is left that the clock would have to break off
    return last.exit_code if last is not None else 0


class _Source:
    """Reads the alerts, on a new connection when the one before is gone."""

    def __init__(
        self, connection: Connection, reconnect: Callable[[], Connection], read: Callable[..., Alerts]
    ) -> None:
        """The first connection remains the caller's to close."""
        self._connection = connection
        self._reconnect = reconnect
        self._read = read
        self._own: Connection | None = None

    def read(self, today: date) -> Alerts:
        """Read them. Raises psycopg.OperationalError or a CertjobError when the database does not answer."""
        if self._connection.closed:
            self._connection = self._own = self._reconnect()
        return self._read(self._connection, today=today)

    def __enter__(self) -> "_Source":
        return self

    def __exit__(self, *_error: object) -> None:
        if self._own is not None:
            self._own.close()


class _Screen(Protocol):
    """Where the alerts are shown."""

    def show(self, alerts: Alerts) -> bool:
        """Show what was read; return whether anybody still reads it."""

    def show_outage(self, cause: str) -> None:
        """Say that nothing could be read."""


class _Lines:
    """Off a terminal: every line, when any of them has changed."""

    def __init__(self, *, zone: tzinfo) -> None:
        self._zone = zone
        self._shown: list[str] | None = None
        self._outage = ""

    def show(self, alerts: Alerts) -> bool:
        if self._outage:
            print_error("certjob alerts", "the database answers again")
            self._outage = ""
        lines = list(plain_lines(alerts, zone=self._zone))
        if lines == self._shown:
            return True
        self._shown = lines
        sys.stdout.write("".join(f"{line}\n" for line in lines or [NOTHING]))
        sys.stdout.flush()  # whoever follows it wants it now
        return not reader_is_gone()

    def show_outage(self, cause: str) -> None:
        if cause != self._outage:
            self._outage = cause
            print_error("certjob alerts", _outage_words(cause))


class _Window:
    """On a terminal: the page, cut to its height, and a line that says how fresh it is."""

    def __init__(self, output: Output, *, zone: tzinfo, now: Callable[[], datetime]) -> None:
        self._console = output.out
        self._zone = zone
        self._now = now
        self._alerts: Alerts | None = None
        self._checked_at = now()
        self._outage = ""
        self.live = Live(
            get_renderable=self._render, console=output.out, screen=True, refresh_per_second=1 / INTERVAL_SECONDS
        )

    def show(self, alerts: Alerts) -> bool:
        self._alerts, self._checked_at, self._outage = alerts, self._now(), ""
        self.live.refresh()
        return True

    def show_outage(self, cause: str) -> None:
        self._outage = cause
        self.live.refresh()

    def _render(self) -> Group:
        """Build the whole screen. The refreshing thread does it, too: a database that hangs must not look fresh."""
        alerts, now = self._alerts, self._now()
        height = max(self._console.height - 1 - bool(self._outage), 1)
        texts: list[Text] = []
        if alerts is not None and len(alerts):
            texts = fit(
                self._console,
                lambda most_rows: page_lines(alerts, zone=self._zone, now=now, most_rows=most_rows),
                most_rows=(MOST_ROWS, 10, 5, 3),
                height=height,
                rest="`certjob alerts` without --watch shows them",
            )
        elif alerts is not None:
            texts = [Text(NOTHING)]
        if self._outage:
            texts.append(_one_line(_outage_words(self._outage), style="bold red"))
        return Group(*texts, self._footer(now))

    def _footer(self, now: datetime) -> Text:
        checked = f"checked {self._checked_at.astimezone(self._zone):%H:%M:%S}"
        age_seconds = (now - self._checked_at).total_seconds()
        late = f", {age_seconds:,.0f} s ago: THIS PAGE IS OLD" if age_seconds >= _LATE_SECONDS else ""
        if self._alerts is None:
            checked = "asking the database"
        return _one_line(
            f"{checked}{late}; every {INTERVAL_SECONDS:g} s; Ctrl-C ends", style="bold red" if late else "dim"
        )


@contextmanager
def _screen(output: Output, *, zone: tzinfo, now: Callable[[], datetime]) -> Iterator[_Screen]:
    if not output.on_terminal or output.out.is_dumb_terminal:
        yield _Lines(zone=zone)
        return
    window = _Window(output, zone=zone, now=now)
    with window.live:
        yield window


def _one_line(text: str, *, style: str) -> Text:
    return Text(harmless(text), style=style, no_wrap=True, overflow="ellipsis")


def _outage_words(cause: str) -> str:
    return f"the database does not answer: {cause}; trying again"


def _cause(error: Exception) -> str:
    """Return what the driver or the server said, on one line; a database error's DETAIL may hold names, and is not."""
    said = (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)
    return " ".join(said.removeprefix("the database cannot be reached: ").split())
