"""Outside eyes on one run: the pings and the metrics file. Whatever goes wrong with them only warns."""

import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError
from certjob.stopping import CLEANING_UP_SECONDS, GRACE_SECONDS, StopFlag

if TYPE_CHECKING:
    from certjob.settings import Settings
    from certjob.views.pings import Pinger

AFTER_A_SIGNAL_SECONDS = 1.0
"""The last ping of a run that was stopped has no longer: the whole process is to be over within 10 s of the signal."""
SHORTEST_SECONDS = 0.2

PING_URL, ATTENTION_PING_URL = "CERTJOB_PING_URL", "CERTJOB_ATTENTION_PING_URL"


class Monitor:
    """What tells others about one run."""

    def __init__(
        self, settings: "Settings", *, run_id: UUID, pings: bool, stop: StopFlag, warn: Callable[[str], None]
    ) -> None:
        """``warn`` says one line; ``pings`` whether this command tells its beginning and its end."""
        self._metrics_file: Path | None = settings.metrics_file
        self._stop = stop
        self._warn = warn
        self._counts: dict[str, Any] = {}
        self._pingers: dict[str, Pinger] = {}
        self._warned: set[str] = set()
        for variable, url in ((PING_URL, settings.ping_url), (ATTENTION_PING_URL, settings.attention_ping_url)):
            if pings and url is not None:
                from certjob.views import pings as pinging  # noqa: PLC0415 - httpx: 50 ms

                self._pingers[variable] = pinging.Pinger(url, run_id=run_id)

    def start(self) -> None:
        """Tell that the run has begun."""
        pinger = self._pingers.get(PING_URL)
        if pinger is not None:
            self._try(PING_URL, lambda: pinger.start(stop=self._stop))

    def note(self, counts: Mapping[str, Any]) -> None:
        """Keep what the end will tell: numbers, and nothing about persons."""
        self._counts = dict(counts)

    def end(self, exit_code: int) -> None:
        """Tell how the run ended; after a signal only as long as there is time."""
        if not self._pingers:
            return
        from certjob.views.pings import TOTAL_SECONDS  # noqa: PLC0415

        seconds = TOTAL_SECONDS
        if self._stop.asked_at is not None:
            left = self._stop.asked_at + GRACE_SECONDS + CLEANING_UP_SECONDS - time.monotonic()
            seconds = min(max(left, SHORTEST_SECONDS), AFTER_A_SIGNAL_SECONDS)
        counts = {"exit_code": exit_code} | self._counts
        for variable, how in _endings(exit_code, with_attention=ATTENTION_PING_URL in self._pingers).items():
            pinger = self._pingers.pop(variable, None)
            if pinger is not None:
                self._try(variable, partial(pinger.end, how, counts, seconds=seconds))

    def _try(self, variable: str, ping: Callable[[], None]) -> None:
        from certjob.views.pings import PingError  # noqa: PLC0415

        try:
            ping()
        except PingError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - nothing about a ping may touch the run
            reason = type(error).__name__  # its text could quote the address
        else:
            return
        if variable not in self._warned:  # a host that is dead at the start is dead at the end, too: once is enough
            self._warned.add(variable)
            self._warn(f"the ping to {variable} did not get through: {reason}; the run itself is not touched")

    def write_metrics(self, connection: Connection, *, today: date) -> None:
        """Write the metrics file anew, after a run that failed, too; not after a signal, when there is no time."""
        if self._metrics_file is None or self._stop.is_set() or connection.closed:
            return
        from certjob.views.metrics import read_metrics, write_file  # noqa: PLC0415 - prometheus-client, 50 ms

        try:
            metrics = read_metrics(connection, today=today)
            write_file(self._metrics_file, metrics)
        except (psycopg.Error, DatabaseUnavailableError):
            self._warn("the metrics file could not be written, since the database did not answer")
        except OSError as error:
            self._warn(f"the metrics file could not be written: {error.strerror}; see CERTJOB_METRICS_FILE")


def _endings(exit_code: int, *, with_attention: bool) -> dict[str, str]:
    """Return what each check is told: nothing for a success, else what is appended to its address.

    A second check lets the first one ring for runs that failed alone, however long something else needs attention.
    """
    if not with_attention or exit_code not in (0, 3):
        return {PING_URL: str(exit_code or "")}
    return {PING_URL: "", ATTENTION_PING_URL: "fail" if exit_code == 3 else ""}
