"""When the next call to the portal may begin: at a polite rate, and not while it has asked to wait."""

import threading
import time
from collections.abc import Callable

from certjob.portal_push import LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS


class Gate:
    """Lets calls through at a rate, and holds all of them while the portal asked to wait. Shared by all threads."""

    def __init__(self, *, calls_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_seconds = 1 / calls_per_second if calls_per_second else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._held_until = 0.0

    def hold(self, seconds: float) -> None:
        """Let no further call begin for so long."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)

    def wait(self, stop: threading.Event) -> bool:
        """Wait for this call's turn; False if it is not to be made, now or at all.

        A hold that is longer than a call would sleep by itself is not waited for: the lease would run out meanwhile.
        """
        while not stop.is_set():
            with self._lock:
                now = self._clock()
                if self._held_until - now > LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS:
                    return False
                wait_seconds = max(self._held_until, self._next_at) - now
                if wait_seconds <= 0:
                    self._next_at = max(self._next_at, now - self._interval_seconds) + self._interval_seconds
                    return True
            stop.wait(wait_seconds)
        return False
