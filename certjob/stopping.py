"""The wish to stop: set by a signal, looked at between units of work."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from certjob.errors import StoppedBySignalError

GRACE_SECONDS = 7.5
"""After a signal the main thread may finish what it does; then whatever it waits for is broken off."""
CLEANING_UP_SECONDS = 1.5
"""What a process has after that to release what it claimed. The interpreter's own end on a busy machine comes on top:
10 seconds in all, the patience of `docker stop`."""


class StopFlag(threading.Event):
    """Set once when the process should end; remembers which signal asked."""

    def __init__(self) -> None:
        super().__init__()
        # A signal may come while its own thread is inside ``wait``, holding the event's lock: the handler's ``set``
        # must be able to take it again, or nothing but kill -9 ends the process.
        self._cond = threading.Condition(threading.RLock())
        self.signal_name = "a signal"
        self.breaks_off = False
        """Whether a signal breaks off a wait without any grace."""
        self.is_over = False
        """Whether the command has ended: a signal changes nothing any more."""
        self.asked_at: float | None = None
        """When the signal came, by the monotonic clock."""
        self.at_end: Callable[[int], None] | None = None
        """Who wants to be told the exit code, once it is known."""

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

    def end(self) -> None:
        """Note that the command has ended, and stop the clock that would break it off."""
        self.is_over = True
        if self.is_set():  # while the interpreter shuts down the alarm would find no handler, and kill it
            signal.setitimer(signal.ITIMER_REAL, 0)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block at once: for work that leaves nothing half done."""
        self.breaks_off = True
        try:
            self.check()
            yield
        finally:
            self.breaks_off = False


class Interrupted(KeyboardInterrupt):
    """Breaks off a wait that outlasted the grace; a KeyboardInterrupt, so that psycopg cancels its statement."""


def stop_on_signals() -> StopFlag:
    """Install handlers for SIGTERM and SIGINT and return the flag they set; a second signal ends every wait."""
    flag = StopFlag()
    ends_at = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal ends_at
        if flag.is_over:
            return
        grace_seconds = 0.0 if flag.is_set() or flag.breaks_off else GRACE_SECONDS
        flag.signal_name = signal.Signals(number).name
        flag.asked_at = flag.asked_at or time.monotonic()
        ends_at = time.monotonic() + grace_seconds + CLEANING_UP_SECONDS
        if grace_seconds:
            signal.setitimer(signal.ITIMER_REAL, grace_seconds)
        flag.set()
        if not grace_seconds:
            break_off(number, frame)

    def break_off(_number: int, _frame: FrameType | None) -> None:
        if flag.is_over:
            return
        # What cleans up may wait, too (a lock, a dead server): it is broken off in its turn, ever sooner.
        signal.setitimer(signal.ITIMER_REAL, max(0.6 * (ends_at - time.monotonic()), 0.05))
        raise Interrupted

    signal.signal(signal.SIGALRM, break_off)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    return flag
