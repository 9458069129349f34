"""The request to stop: set by a signal, read between units of work."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

from certjob.errors import StoppedBySignalError

GRACE_SECONDS = 7.5
"""Time after a signal for the work in hand to end. Then the current wait is interrupted. psycopg needs at most 10 more
seconds to cancel its statement, or to close the connection to a silent server."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end the command. SIGHUP arrives when the terminal is gone, such as a dropped ssh session."""

_POLL_SECONDS = 0.1


class Interrupted(KeyboardInterrupt):
    """Interrupts a wait that outlasted the grace; a KeyboardInterrupt, so that psycopg cancels its statement."""


def _interrupt() -> None:
    raise Interrupted


class StopFlag:
    """Set once when the process should end; remembers which signal asked."""

    def __init__(self) -> None:
        self.signal_name = "a signal"
        self.breaks_off = False
        """Whether a signal interrupts a wait without any grace."""
        self.is_over = False
        """Whether the command has ended: a signal changes nothing any more."""
        self.at_end: Callable[[int], None] | None = None
        """Called with the exit code, once it is known."""
        self.break_off: Callable[[], object] = _interrupt
        """Interrupts the current wait."""
        self._set_at: float | None = None

    def set(self) -> None:
        """Ask for the end; from any thread, and from a signal handler."""
        self._set_at = self._set_at or time.monotonic()

    def is_set(self) -> bool:
        """Return whether the end was asked for."""
        return self._set_at is not None

    @property
    def seconds_since_set(self) -> float:
        """The seconds since it was set; negative before."""
        return -1.0 if self._set_at is None else time.monotonic() - self._set_at

    def error(self) -> StoppedBySignalError:
        """Return the error that ends the command."""
        return StoppedBySignalError(
            f"stopped by {self.signal_name}", next_step="what was done is kept, the next run does the rest"
        )

    def check(self) -> None:
        """Raise StoppedBySignalError if it is set."""
        if self.is_set():
            raise self.error()

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until it is set; then raise StoppedBySignalError."""
        ends_at = time.monotonic() + seconds
        while not self.is_set() and (left := ends_at - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
        self.check()

    def end(self) -> None:
        """Note that the command has ended, and cancel the alarm."""
        self.is_over = True
        if self.is_set():  # while the interpreter shuts down, the alarm would find no handler and kill the process
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


def stop_on_signals() -> StopFlag:
    """Install handlers for STOP_SIGNALS and return the flag they set; a second signal interrupts every wait.

    `nohup` starts a process with SIGHUP ignored, and it stays ignored.
    """
    flag = StopFlag()
    asked = count()

    def ask(number: int, _frame: FrameType | None) -> None:
        if flag.is_over:
            return
        is_first = next(asked) == 0  # the handler of a second signal may interrupt this one
        if not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        flag.signal_name = signal.Signals(number).name
        flag.set()
        if flag.breaks_off or not is_first:
            flag.break_off()

    def ring(_number: int, _frame: FrameType | None) -> None:
        if not flag.is_over:
            flag.break_off()

    signal.signal(signal.SIGALRM, ring)
    for number in STOP_SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)
    return flag
