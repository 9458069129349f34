"""The pings of one run. Whatever goes wrong with them is only a warning."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from uuid import UUID

from certjob.stopping import StopFlag

if TYPE_CHECKING:
    from certjob.settings import Settings

AFTER_A_SIGNAL_SECONDS = 1.0
"""Time for the last ping of a stopped run."""

PING_URL, ATTENTION_PING_URL = "CERTJOB_PING_URL", "CERTJOB_ATTENTION_PING_URL"


class Monitor:
    """Reports one run to external monitors."""

    def __init__(self, settings: "Settings", *, run_id: UUID, stop: StopFlag, warn: Callable[[str], None]) -> None:
        """``warn`` prints one line."""
        urls = {PING_URL: settings.ping_url, ATTENTION_PING_URL: settings.attention_ping_url}
        self._urls = {variable: url.get_secret_value().rstrip("/") for variable, url in urls.items() if url}
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


def _endings(exit_code: int, *, with_attention: bool) -> dict[str, str]:
    """Return for each check what is appended to its address; nothing for a success.

    A second check lets the first one ring for runs that failed alone, however long something else needs attention.
    """
    if not with_attention or exit_code not in (0, 3):
        return {PING_URL: f"/{exit_code}" if exit_code else ""}
    return {PING_URL: "", ATTENTION_PING_URL: "/fail" if exit_code == 3 else ""}
