"""When the next call to the portal may begin: a rate, and the waits that the portal asked for."""

import asyncio
import time
from collections.abc import Callable

from certjob.outbox.retry import wait

LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS = 20.0


class RateLimiter:
    """Lets calls begin at a rate, and holds all of them while the portal asked to wait. Shared by all pushes."""

    def __init__(self, *, calls_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """``calls_per_second`` 0 = as many as come."""
        self._interval_seconds = 1 / calls_per_second if calls_per_second else 0.0
        self._clock = clock
        self._next_at = 0.0
        self._held_until = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether there is a rate."""
        return self._interval_seconds > 0

    @property
    def is_held(self) -> bool:
        """Whether the portal asked to wait for longer than is slept inside a call."""
        return self._held_until - self._clock() > LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS

    def hold(self, seconds: float) -> None:
        """Let no call begin for this long."""
        self._held_until = max(self._held_until, self._clock() + seconds)

    def seconds_left(self) -> float:
        """Return how long the next call has to wait for its turn; 0: it may begin now."""
        return max(self._held_until, self._next_at) - self._clock()

    def begin(self) -> None:
        """Note that a call begins."""
        self._next_at = max(self._next_at, self._clock() - self._interval_seconds) + self._interval_seconds

    async def wait(self, halt: asyncio.Event) -> bool:
        """Wait for the turn of a call and begin it; False if it is not to be made, now or at all.

        A long hold is not waited for: the lease would run out meanwhile.
        """
        while not halt.is_set() and not self.is_held:
            seconds = self.seconds_left()
            if seconds <= 0:
                self.begin()
                return True
            await wait(seconds, halt)
        return False
