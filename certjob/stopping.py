"""The request to stop: set by a signal, looked at between units of work."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from types import FrameType
from typing import NoReturn

from certjob.errors import CertjobError, StoppedBySignalError

GRACE_SECONDS = 7.5
"""After a signal the work in hand may end in its own way; then whatever it waits for is broken off."""
CLEANING_UP_SECONDS = 1.5
"""What a process has after that to release what it claimed; then it ends hard. The interpreter's own end on a busy
machine comes on top: 10 seconds in all, the patience of `docker stop`."""


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What asks for the end; SIGHUP when the terminal has gone, as when the line of an ssh session drops."""


class Interrupted(KeyboardInterrupt):
    """Breaks off a wait that outlasted the grace; a KeyboardInterrupt, so that psycopg cancels its statement."""


def _interrupt() -> None:
    raise Interrupted


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
        """Called with the exit code, once it is known."""
        self.last_words: Callable[[Exception], object] | None = None
        """Prints why the process ends hard."""
        self._set_at: float | None = None
        self.break_off: Callable[[], object] = _interrupt
        """Ends what is being waited for."""

    def set(self) -> None:
        """Ask for the end; from any thread, and from a signal handler."""
        self._set_at = self._set_at or time.monotonic()
        super().set()

    @property
    def seconds_since_set(self) -> float:
        """How long ago it was set; negative before."""
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
        self.wait(seconds)
        self.check()

    def end(self) -> None:
        """Note that the command has ended, and stop the clock that would break it off."""
        self.is_over = True
        if self.is_set():  # while the interpreter shuts down the alarm would find no handler, and kill it
            signal.setitimer(signal.ITIMER_REAL, 0)

    def end_hard(self, error: CertjobError) -> NoReturn:
        """End the process here and now, with its line: something does not let go, such as a silent database."""
        with suppress(Exception):
            if self.last_words is not None:
                self.last_words(error)
        os._exit(error.exit_code)

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
    """Install handlers for STOP_SIGNALS and return the flag they set; a second signal ends every wait.

    `nohup` has SIGHUP ignored before the start, and it stays so.
    """
    flag = StopFlag()
    asked = count()

    def ask(number: int, _frame: FrameType | None) -> None:
        if flag.is_over:
            return
        is_first = next(asked) == 0  # two at one moment: the handler of the second interrupts that of the first
        flag.signal_name = signal.Signals(number).name
        if flag.asked_at is None:
            flag.asked_at = (
                time.monotonic()
            )  # before the alarm, whose second ring must not come too early by this clock
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS, CLEANING_UP_SECONDS)
        flag.set()
        if flag.breaks_off or not is_first:
            flag.break_off()

    def ring(_number: int, _frame: FrameType | None) -> None:
        if flag.is_over or flag.asked_at is None:
            return
        if time.monotonic() - flag.asked_at >= GRACE_SECONDS + CLEANING_UP_SECONDS:
            flag.end_hard(flag.error())
        flag.break_off()

    signal.signal(signal.SIGALRM, ring)
    for number in STOP_SIGNALS:
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, ask)
    return flag
