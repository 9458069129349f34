"""The page of alerts that keeps itself up to date until somebody presses Ctrl-C."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date, datetime, tzinfo

import psycopg
from rich.console import Group
from rich.live import Live
from rich.text import Text

from certjob import database
from certjob.cli.pages.alerts import NOTHING, page_lines, plain_lines
from certjob.cli.terminal.lines import fit
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.plain import harmless, print_error
from certjob.cli.terminal.streams import reader_is_gone
from certjob.database import Connection
from certjob.database.connections import NO_ANSWER
from certjob.errors import CertjobError, StoppedBySignalError
from certjob.stopping import Interrupted, StopFlag
from certjob.views.alerts import Alerts, read_alerts

INTERVAL_SECONDS = 2.0

SILENCE_SECONDS = 60.0
"""Off a terminal nothing shows how old the last lines are: a database that is silent for so long is said."""
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
    on_screen = output.on_terminal and not output.out.is_dumb_terminal
    database.hang_up_when_silent(connection, seconds=SILENCE_SECONDS)
    screen = _Window(output, zone=zone, now=now) if on_screen else _Lines(zone=zone, now=now)
    try:
        with ExitStack() as opened:
            if isinstance(screen, _Window):
                opened.enter_context(screen.live)
            anew = opened.enter_context(ExitStack())
            while True:
                try:
                    with stop.interruptible():
                        if connection.closed:
                            anew.close()  # whoever watches over one that was lost ends when nobody holds it
                            connection = anew.enter_context(reconnect())
                            database.hang_up_when_silent(connection, seconds=SILENCE_SECONDS)
                        with database.transaction(connection):
                            connection.execute("SELECT set_config('statement_timeout', %s, true)", (_patience(),))
                            last = read(connection, today=today())
                except (psycopg.OperationalError, CertjobError) as error:
                    stop.check()
                    screen.show_outage(f"the database does not answer: {_cause(error)}; trying again")
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


class _Lines:
    """Off a terminal: every line, when any of them has changed."""

    def __init__(self, *, zone: tzinfo, now: Callable[[], datetime]) -> None:
        self._zone = zone
        self._now = now
        self._shown: list[str] | None = None
        self._outage = ""

    def show(self, alerts: Alerts) -> bool:
        """Print what was read; return whether anybody still reads it."""
        if self._outage:
            print_error("certjob alerts", "the database answers again")
            self._outage = ""
        lines = list(plain_lines(alerts, zone=self._zone, now=self._now()))
        if lines == self._shown:
            return True
        self._shown = lines
        sys.stdout.write("".join(f"{line}\n" for line in lines or [NOTHING]))
        sys.stdout.flush()  # whoever follows it wants it now
        return not reader_is_gone()

    def show_outage(self, outage: str) -> None:
        """Say once that nothing could be read."""
        if outage != self._outage:
            self._outage = outage
            print_error("certjob alerts", outage)


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
        """Show what was read; a terminal always reads."""
        self._alerts, self._checked_at, self._outage = alerts, self._now(), ""
        self.live.refresh()
        return True

    def show_outage(self, outage: str) -> None:
        """Say below the last page that nothing could be read."""
        self._outage = outage
        self.live.refresh()

    def _render(self) -> Group:
        """Build the whole screen. The refreshing thread does it, too: a database that hangs must not look fresh."""
        now, texts = self._now(), [Text(NOTHING)] if self._alerts is not None else []
        if self._alerts:
            lines = page_lines(self._alerts, zone=self._zone, now=now)
            height = max(self._console.height - 1 - bool(self._outage), 1)
            texts = fit(self._console, lines, height=height, rest="`certjob alerts` without --watch shows them")
        if self._outage:
            texts.append(_one_line(self._outage, style="bold red"))
        checked = f"checked {self._checked_at.astimezone(self._zone):%H:%M:%S}"
        age_seconds = (now - self._checked_at).total_seconds()
        late = f", {age_seconds:,.0f} s ago: THIS PAGE IS OLD" if age_seconds >= _LATE_SECONDS else ""
        if self._alerts is None:
            checked = "asking the database"
        footer = f"{checked}{late}; every {INTERVAL_SECONDS:g} s; Ctrl-C ends"
        return Group(*texts, _one_line(footer, style="bold red" if late else "dim"))


def _patience() -> str:
    """Return how many milliseconds a statement may take: the server ends it before its session is hung up on.

    A session that waits for a lock does not notice that nobody listens any more: each try would leave another one.
    """
    return f"{800 * SILENCE_SECONDS:.0f}"


def _one_line(text: str, *, style: str) -> Text:
    return Text(harmless(text), style=style, no_wrap=True, overflow="ellipsis")


def _cause(error: Exception) -> str:
    """Return what the driver or the server said, on one line; a database error's DETAIL may hold names, and is not."""
    if isinstance(error, CertjobError) and error.message == NO_ANSWER:
        return f"silent for {SILENCE_SECONDS:g} s"
    said = (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)
    return " ".join(said.removeprefix("the database cannot be reached: ").split())
