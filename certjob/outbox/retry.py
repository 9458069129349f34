"""Trying again: how often, how long apart, and when to stop, for calls to any service.

A policy holds what is general; the two functions that know a service's errors are handed in. For the accounting
system, say, whose client raises ``AccountingError`` with a ``status`` and a ``retry_after_seconds``:

    policy = RetryPolicy(
        max_attempts=4,
        backoff=exponential(base_seconds=1, cap_seconds=30),
        deadline_seconds=120,
        is_transient=lambda error: isinstance(error, AccountingError) and error.status in (429, 502, 503),
        retry_after=lambda error: getattr(error, "retry_after_seconds", None),
    )
    receipt = await policy.call(lambda: accounting.post(voucher), stop=shutting_down)

The loop itself is the ``backoff`` package's, and this is the only module that knows it. Two of its parts are not used:
its time limit reads the local wall clock, and its sleep cannot be cut short.
"""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from backoff import constant as at_intervals
from backoff import on_exception
from backoff.types import Details

T = TypeVar("T")

LONGEST_RETRY_AFTER_SECONDS = 86_400.0
"""A Retry-After of more than a day is taken for a mistake, and for a day."""

_DELAY_SECONDS = re.compile(r"(-?)([0-9]+(?:\.[0-9]*)?)")

Backoff = Callable[[int], float]
"""The seconds to wait after the n-th failed attempt, n = 1, 2, …"""

OnWait = Callable[[Exception, float], object]
"""Told of each wait before it begins: the error, and the seconds."""


def constant(*, seconds: float) -> Backoff:
    """Wait equally long each time."""
    return lambda attempt: seconds


def exponential(*, base_seconds: float, cap_seconds: float) -> Backoff:
    """Wait ``base_seconds`` and then twice as long each time, at most ``cap_seconds``."""
    return lambda attempt: _doubled(base_seconds, attempt=attempt, cap_seconds=cap_seconds)


def full_jitter(*, base_seconds: float, cap_seconds: float) -> Backoff:
    """Wait anything between nothing and what ``exponential`` would, so that many callers do not come back at once.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015), its "full jitter".
    """
    return lambda attempt: random.uniform(  # noqa: S311 - spreads load, guards nothing
        0, _doubled(base_seconds, attempt=attempt, cap_seconds=cap_seconds)
    )


seconds_to_next_round: Backoff = exponential(base_seconds=15 * 60, cap_seconds=6 * 3600)
"""After a round of calls, or a mail, that has failed for the n-th time: 15 minutes, 30, … at most 6 hours."""


def _doubled(base_seconds: float, *, attempt: int, cap_seconds: float) -> float:
    # The exponent is bounded because a float's power overflows with an error, while a product becomes infinite.
    return float(min(cap_seconds, base_seconds * 2.0 ** min(attempt - 1, 1000)))


async def wait(seconds: float, stop: asyncio.Event | None) -> None:
    """Sleep, or return early once ``stop`` is set."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await (stop or asyncio.Event()).wait()


DEFAULT_BACKOFF = full_jitter(base_seconds=0.5, cap_seconds=20)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When a failed operation is tried again. Holds no state, so that all calls may share one."""

    is_transient: Callable[[Exception], bool]
    """Whether another try may succeed; any other error is raised at once."""
    retry_after: Callable[[Exception], float | None] = lambda _error: None
    """The seconds the service asked for, None if it did not: a floor under the backoff, never shortened by jitter."""
    max_attempts: int = 3
    """Calls in all, the first one included."""
    backoff: Backoff = DEFAULT_BACKOFF
    deadline_seconds: float = 100
    """From the start of the first call; no later call starts after it."""
    longest_retry_after_seconds: float = 20
    """A service that asks for more ends the tries at once: the caller has better things to do meanwhile."""
    clock: Callable[[], float] = time.monotonic
    """Seconds that only grow."""
    sleep: Callable[[float, asyncio.Event | None], Awaitable[None]] = wait

    def __post_init__(self) -> None:
        """Raise ValueError for a policy that could not end (``backoff`` would take 0 attempts for no limit)."""
        if self.max_attempts < 1:
            message = f"max_attempts must be at least 1, not {self.max_attempts}"
            raise ValueError(message)
        if not self.deadline_seconds > 0:
            message = f"deadline_seconds must be positive, not {self.deadline_seconds}"
            raise ValueError(message)

    async def call(
        self, operation: Callable[[], Awaitable[T]], *, stop: asyncio.Event | None = None, on_wait: OnWait | None = None
    ) -> T:
        """Call ``operation`` until it returns, and return its value; raise its last exception when the tries end.

        They end with ``max_attempts``, with an error that is not transient, with a wait that would pass the deadline
        or is longer than ``longest_retry_after_seconds``, and when ``stop`` is set, which cuts a wait short. The first
        call is always made, even with ``stop`` set: there would be nothing to return or raise.
        """
        ends_at = self.clock() + self.deadline_seconds
        failures: list[Exception] = []
        seconds = 0.0

        def is_stopped() -> bool:
            return stop is not None and stop.is_set()

        def are_over(error: Exception) -> bool:
            """``backoff`` asks this exactly once for each failure, the last one included."""
            nonlocal seconds
            failures.append(error)
            if is_stopped() or not self.is_transient(error):
                return True
            asked_seconds = self.retry_after(error) or 0.0
            seconds = max(self.backoff(len(failures)), asked_seconds)
            return asked_seconds > self.longest_retry_after_seconds or self.clock() + seconds >= ends_at

        async def wait_for_next(_details: Details) -> None:
            """``backoff`` calls this between two attempts, inside its ``except``."""
            if on_wait is not None:
                on_wait(failures[-1], seconds)
            await self.sleep(seconds, stop)
            if is_stopped():
                raise failures[-1]

        @on_exception(
            at_intervals,
            Exception,
            interval=0,  # ``wait_for_next`` waits, and can be cut short
            max_tries=self.max_attempts,
            giveup=are_over,
            on_backoff=wait_for_next,
            jitter=None,  # its default would shorten a Retry-After, too
            logger=None,  # its default writes the exception's text
        )
        async def attempt() -> T:  # given anything but an ``async def``, backoff would never try again
            return await operation()

        return await attempt()

    def worst_case_seconds(self, call_seconds: float) -> float:
        """Return the longest that ``call`` takes if one operation takes at most ``call_seconds``.

        The last operation starts before the deadline or is the only one.
        """
        return call_seconds if self.max_attempts == 1 else self.deadline_seconds + call_seconds


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Return the seconds to wait that a Retry-After header asks for, both its forms (RFC 9110, 10.2.3).

    ``now`` is aware. A moment that has passed gives 0, a wait beyond a day gives a day, and what is neither a number
    nor a date gives None, as a missing header does. A fraction of a second, which the RFC does not know, is understood.
    """
    text = (value or "").strip()
    number = _DELAY_SECONDS.fullmatch(text)
    if number is not None:
        seconds = 0.0 if number[1] else float(number[2])
    else:
        try:
            moment = parsedate_to_datetime(text)  # the three forms of RFC 9110, 5.6.7
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
            seconds = (moment - now).total_seconds()
        except (ValueError, OverflowError, IndexError, TypeError):  # all seen from it, for various rubbish
            return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)
