"""The wish to stop: set by a signal, looked at between units of work."""

import signal
import threading
from types import FrameType

from certjob.errors import StoppedBySignalError

GRACE_SECONDS = 9.0
"""After a signal the main thread may finish what it does; then whatever it waits for is broken off."""


class StopFlag(threading.Event):
    """Set once when the process should end; remembers which signal asked."""

    signal_name: str = "a signal"

    def error(self) -> StoppedBySignalError:
        """Return the error that ends the command."""
        return StoppedBySignalError(
            f"stopped by {self.signal_name}; what was done is kept, the rest stays queued for the next run"
        )

    def check(self) -> None:
        """Raise StoppedBySignalError if it is set."""
        if self.is_set():
            raise self.error()

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until it is set; then raise StoppedBySignalError."""
        self.wait(seconds)
        self.check()


class Interrupted(KeyboardInterrupt):
    """Breaks off a wait that outlasted the grace; a KeyboardInterrupt, so that psycopg cancels its statement."""


def stop_on_signals() -> StopFlag:
    """Install handlers for SIGTERM and SIGINT and return the flag they set; a second signal ends the wait."""
    flag = StopFlag()

    def ask(number: int, _frame: FrameType | None) -> None:
        if flag.is_set():
            raise Interrupted
        flag.signal_name = signal.Signals(number).name
        flag.set()
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)

    def break_off(_number: int, _frame: FrameType | None) -> None:
        raise Interrupted

    signal.signal(signal.SIGALRM, break_off)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return flag
