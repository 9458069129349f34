"""The pings and the metrics file of one run. Whatever goes wrong with them is only a warning."""

from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from certjob import files
from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError
from certjob.stopping import StopFlag

if TYPE_CHECKING:
    from certjob.settings import Settings

AFTER_A_SIGNAL_SECONDS = 1.0
"""Time for the last ping of a stopped run."""

PING_URL, ATTENTION_PING_URL = "CERTJOB_PING_URL", "CERTJOB_ATTENTION_PING_URL"


class Monitor:
    """Reports one run to external monitors."""

    def __init__(
        self, settings: "Settings", *, run_id: UUID, pings: bool, stop: StopFlag, warn: Callable[[str], None]
    ) -> None:
        """``warn`` prints one line; ``pings`` is whether this command reports its beginning and its end."""
        urls = {PING_URL: settings.ping_url, ATTENTION_PING_URL: settings.attention_ping_url} if pings else {}
        self._urls = {variable: url.get_secret_value().rstrip("/") for variable, url in urls.items() if url}
        self._metrics_file = settings.metrics_file
        self._run_id = run_id
        self._stop = stop
        self._warn = warn
        self._counts: dict[str, Any] = {}
        self._warned: set[str] = set()

    def start(self) -> None:
        """Report that the run has begun."""
        self._ping(PING_URL, "/start", {})

    def note(self, counts: Mapping[str, Any]) -> None:
        """Keep what the end will report: numbers, and nothing about persons."""
        self._counts = dict(counts)

    def end(self, exit_code: int) -> None:
        """Report how the run ended; after a signal only as long as there is time."""
        counts = {"exit_code": exit_code} | self._counts
        for variable, how in _endings(exit_code, with_attention=ATTENTION_PING_URL in self._urls).items():
            self._ping(variable, how, counts)

    def _ping(self, variable: str, how: str, counts: Mapping[str, Any]) -> None:
        if variable not in self._urls:
            return
        from certjob.reports import pings  # noqa: PLC0415 - httpx: 50 ms

        seconds = AFTER_A_SIGNAL_SECONDS if self._stop.is_set() else pings.TOTAL_SECONDS
        url = f"{self._urls[variable]}{how}?rid={self._run_id}"
        try:
            reason = pings.ping(url, counts, seconds=seconds, stop=self._stop)
        except Exception as error:  # noqa: BLE001 - nothing about a ping may touch the run
            reason = type(error).__name__  # its text could quote the address
        if reason is not None and variable not in self._warned:  # a host that is dead at the start is dead at the end
            self._warned.add(variable)
            self._warn(f"the ping to {variable} did not get through: {reason}; the run itself is not touched")

    def write_metrics(self, connection: Connection, *, today: date) -> None:
        """Replace the metrics file, after a failed run too; not after a signal, when there is no time."""
        if self._metrics_file is None or self._stop.is_set() or connection.closed:
            return
        from certjob.reports.metrics import read_metrics  # noqa: PLC0415 - prometheus-client, 50 ms

        try:
            metrics = read_metrics(connection, today=today)
            files.replace(self._metrics_file, metrics, mode=0o644)  # node_exporter runs as another user
        except (psycopg.Error, DatabaseUnavailableError):
            self._warn("the metrics file could not be written, since the database did not answer")
        except OSError as error:
            self._warn(f"the metrics file could not be written: {error.strerror}; see CERTJOB_METRICS_FILE")


def _endings(exit_code: int, *, with_attention: bool) -> dict[str, str]:
    """Return for each check what is appended to its address; nothing for a success.

    A second check lets the first one ring for runs that failed alone, however long something else needs attention.
    """
    if not with_attention or exit_code not in (0, 3):
        return {PING_URL: f"/{exit_code}" if exit_code else ""}
    return {PING_URL: "", ATTENTION_PING_URL: "/fail" if exit_code == 3 else ""}
