"""The wish to stop: set by a signal, looked at between units of work."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from certjob.errors import StoppedBySignalError

GRACE_SECONDS = 9.0
"""After a signal the main thread may finish what it does; then whatever it waits for is broken off."""
LAST_WAITS_SECONDS = 0.3
"""Once something was broken off, each further wait, of the cleaning up, gets so long."""


class StopFlag(threading.Event):
    """Set once when the process should end; remembers which signal asked."""

    def __init__(self) -> None:
        super().__init__()
        self.signal_name = "a signal"
        self.breaks_off = False
        """Whether a signal breaks off a wait without any grace."""
        self.is_over = False
        """The command has ended: a signal changes nothing any more."""

    def error(self) -> StoppedBySignalError:
        """Return the error that ends the command."""
        return StoppedBySignalError(f"stopped by {self.signal_name}; what was done is kept, the next run does the rest")

    def check(self) -> None:
        """Raise StoppedBySignalError if it is set."""
        if self.is_set():
            raise self.error()

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until it is set; then raise StoppedBySignalError."""
        self.wait(seconds)
        self.check()

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Let a signal end the block at once: for work that holds nothing which is worth finishing."""
        self.check()
        self.breaks_off = True
        try:
            yield
        finally:
            self.breaks_off = False


class Interrupted(KeyboardInterrupt):
    """Breaks off a wait that outlasted the grace; a KeyboardInterrupt, so that psycopg cancels its statement."""


def stop_on_signals() -> StopFlag:
    """Install handlers for SIGTERM and SIGINT and return the flag they set; a second signal ends every wait."""
    flag = StopFlag()

    def ask(number: int, _frame: FrameType | None) -> None:
        if flag.is_over:
            return
        is_urgent = flag.is_set() or flag.breaks_off
        flag.signal_name = signal.Signals(number).name
        flag.set()
        signal.setitimer(signal.ITIMER_REAL, LAST_WAITS_SECONDS if is_urgent else GRACE_SECONDS, LAST_WAITS_SECONDS)
        if is_urgent:
            raise Interrupted

    def break_off(_number: int, _frame: FrameType | None) -> None:
        if not flag.is_over:
            raise Interrupted

    signal.signal(signal.SIGALRM, break_off)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return flag
