"""The request to stop: set by a signal, read between units of work."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from types import FrameType

from certjob.errors import StoppedBySignalError

GRACE_SECONDS = 7.5
"""Time after a signal for the current work. Then the current wait is interrupted. psycopg needs at most 10 more seconds
to cancel its statement, or to close the connection to a silent server."""

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that end the command. SIGHUP arrives when the terminal closes, for example with an ssh session."""

_POLL_SECONDS = 0.1


class Interrupted(KeyboardInterrupt):
    """Interrupts a wait after the grace. psycopg cancels its statement because of a KeyboardInterrupt."""


class StopFlag:
    """A request to end the command, set by a signal."""

    def __init__(self) -> None:
        self.signal_name = "a signal"
        self.breaks_off = False
        """Whether a signal interrupts the current wait at once."""
        self.is_over = False
        """Whether the command has ended, so signals are ignored."""
        self.at_end: Callable[[int], None] | None = None
        """Called with the exit code at the end."""
        self.is_urgent = False
        """Whether the current wait must end now: after a second signal, or after the grace."""
        self._is_watched = False
        self._set_at: float | None = None

    def set(self) -> None:
        """Request the end, from any thread or signal handler."""
        self._set_at = self._set_at or time.monotonic()

    def is_set(self) -> bool:
        """Return whether the end was requested."""
        return self._set_at is not None

    @property
    def seconds_since_set(self) -> float:
        """The seconds since the request, or a negative number without one."""
        return -1.0 if self._set_at is None else time.monotonic() - self._set_at

    def error(self) -> StoppedBySignalError:
        """Return the error that ends the command."""
        step = "what was done is kept, the next run does the rest"
        return StoppedBySignalError(f"stopped by {self.signal_name}", next_step=step)

    def check(self) -> None:
        """Raise StoppedBySignalError if the end was requested."""
        if self.is_set():
            raise self.error()

    def sleep(self, seconds: float) -> None:
        """Wait. Raise StoppedBySignalError as soon as the end is requested."""
        ends_at = time.monotonic() + seconds
        while not self.is_set() and (left := ends_at - time.monotonic()) > 0:
            time.sleep(min(left, _POLL_SECONDS))
        self.check()

    def end(self) -> None:
        """Record that the command has ended, and cancel the alarm."""
        self.is_over = True
        if self.is_set():  # during the shutdown of the interpreter, the alarm would kill the process
            signal.setitimer(signal.ITIMER_REAL, 0)

    def interrupt(self) -> None:
        """End the current wait. Called by signal handlers."""
        self.is_urgent = True
        if not self._is_watched:
            raise Interrupted

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let no signal interrupt the block, because an event loop cannot go on then. It reads ``is_urgent`` itself."""
        self._is_watched = True
        try:
            yield
        finally:
            self._is_watched = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end the block at once. The block must not leave work half done."""
        self.breaks_off = True
        try:
            self.check()
            yield
        finally:
            self.breaks_off = False


def stop_on_signals() -> StopFlag:
    """Install handlers for STOP_SIGNALS and return the flag that they set. A second signal interrupts every wait.

    `nohup` starts a process with SIGHUP ignored. certjob keeps ignoring it.
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
            flag.interrupt()

    def ring(_number: int, _frame: FrameType | None) -> None:
        if not flag.is_over:
            flag.interrupt()

    signal.signal(signal.SIGALRM, ring)
    for number in STOP_SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)
    return flag
