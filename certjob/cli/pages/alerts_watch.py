"""The alerts, read again every two seconds until somebody presses Ctrl-C."""

from collections.abc import Callable
from datetime import datetime

import psycopg
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from certjob import database
from certjob.cli.pages.alerts import NOTHING, page_lines
from certjob.cli.terminal.lines import wrap
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.streams import reader_is_gone
from certjob.database import Connection
from certjob.errors import CertjobError, StoppedBySignalError, UsageError
from certjob.redaction import harmless
from certjob.reports.alerts import Alerts, read_alerts
from certjob.stopping import Interrupted, StopFlag

INTERVAL_SECONDS = 2.0
SILENCE_SECONDS = 60.0
"""A database that is silent for so long is reported, and asked again in another session."""
LOCK_TIMEOUT_MS = 10_000
"""A session that waits for a lock does not notice that its client has gone: each try would leave another one."""


def watch_alerts(
    output: Output,
    connection: Connection,
    *,
    now: Callable[[], datetime],
    stop: StopFlag,
) -> int:
    """Show the page of alerts every two seconds until a signal.

    ``now`` returns the time in the zone in which days and times are shown.

    SIGINT (Ctrl-C) is the ordinary end: returns the exit code of what was read last. A database that does not answer
    is asked again. Raises UsageError without a terminal that has a screen, StoppedBySignalError after any other signal,
    or when nothing could be read at all.
    """
    if not output.on_terminal or output.out.is_dumb_terminal:
        message = "--watch needs a terminal"
        raise UsageError(message, next_step="leave it out, and run `certjob alerts` as often as you like")
    alerts: Alerts | None = None
    checked_at = now()
    database.hang_up_when_silent(connection, seconds=SILENCE_SECONDS)
    first = Text("asking the database; Ctrl-C ends", style="dim")
    try:
        with Live(first, console=output.out, screen=True, auto_refresh=False) as live:
            while not reader_is_gone():
                outage = ""
                try:
                    with stop.interruptible():
                        if connection.closed:
                            connection = database.connect(connection.url)
                            database.hang_up_when_silent(connection, seconds=SILENCE_SECONDS)
                        with database.transaction(connection, lock_timeout_ms=LOCK_TIMEOUT_MS):
                            alerts, checked_at = read_alerts(connection, today=now().date()), now()
                except (psycopg.OperationalError, CertjobError) as error:
                    stop.check()
                    outage = f"could not read the alerts: {_cause(error)}; trying again"
                live.update(_page(output.out, alerts, checked_at=checked_at, outage=outage), refresh=True)
                stop.sleep(INTERVAL_SECONDS)
    except (Interrupted, StoppedBySignalError):
        if stop.signal_name != "SIGINT" or alerts is None:
            raise
        stop.end()  # nothing is left that the clock would have to break off
    finally:
        connection.close()  # the session closes only the one that it opened
    return 3 if alerts else 0


def _cause(error: psycopg.OperationalError | CertjobError) -> str:
    """Return what happened, without a database error's DETAIL: that may hold names."""
    said = error.message if isinstance(error, CertjobError) else error.diag.message_primary or str(error)
    return " ".join(said.split())


def _page(console: Console, alerts: Alerts | None, *, checked_at: datetime, outage: str) -> Group:
    """Return when it was read, what went wrong since, and as much of the page as there is room for."""
    lines = []
    heading = "Ctrl-C ends"
    if alerts is not None:
        lines = list(wrap(console, page_lines(alerts, now=checked_at))) or [Text(NOTHING)]
        heading = f"checked at {checked_at:%H:%M:%S}; {heading}"
    if len(lines) > console.height - 1 - bool(outage):
        heading += "; cut short: `certjob alerts` shows it all"
    above = [_one_line(heading, style="dim")]
    if outage:
        above.append(_one_line(outage, style="bold red"))
    return Group(*above, *lines)


def _one_line(text: str, *, style: str) -> Text:
    return Text(harmless(text), style=style, no_wrap=True, overflow="ellipsis")
