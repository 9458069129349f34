"""Retries: how often, how long apart, and when they end, for calls to any service.

A policy holds the numbers. Two functions that know the service's errors are passed in. An example for an accounting
system such as Xledger, whose client raises ``AccountingError`` with a ``status`` and a ``retry_after_seconds``:

    policy = RetryPolicy(
        max_attempts=4,
        backoff=exponential(base_seconds=1, cap_seconds=30),
        deadline_seconds=120,
        is_transient=lambda error: isinstance(error, AccountingError) and error.status in (429, 502, 503),
        retry_after=lambda error: getattr(error, "retry_after_seconds", None),
    )
    receipt = await policy.call(accounting.post, voucher, stop=shutting_down)

A report to Bufdir, or to any other service, needs a policy of its own with the same arguments. The loop is the
``backoff`` package's, and only this module imports it.
"""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import backoff

T = TypeVar("T")

LONGEST_RETRY_AFTER_SECONDS = 86_400.0
"""A longer Retry-After counts as one day."""

_DELAY_SECONDS = re.compile(r"(-?)([0-9]+(?:\.[0-9]*)?)")

Backoff = Callable[[int], float]
"""Returns the seconds to wait after the n-th failed attempt, n = 1, 2, …"""


def exponential(*, base_seconds: float, cap_seconds: float) -> Backoff:
    """Wait ``base_seconds`` after the first failure, then twice as long each time, at most ``cap_seconds``."""
    return lambda attempt: min(cap_seconds, base_seconds * 2.0 ** min(attempt - 1, 1000))  # a float cannot hold 2**1024


def full_jitter(*, base_seconds: float, cap_seconds: float) -> Backoff:
    """Wait a random time up to that of ``exponential``, because many callers must not return at once.

    Source: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015), its "full jitter".
    """
    longest = exponential(base_seconds=base_seconds, cap_seconds=cap_seconds)
    return lambda attempt: backoff.full_jitter(longest(attempt))


seconds_to_next_round: Backoff = exponential(base_seconds=15 * 60, cap_seconds=6 * 3600)
"""After the n-th failed round of calls, or the n-th failed mail: 15 minutes, 30, … at most 6 hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When to retry a failed operation. It has no state, so all calls may share one."""

    is_transient: Callable[[Exception], bool]
    """Whether another attempt may succeed; any other error is raised at once."""
    backoff: Backoff
    retry_after: Callable[[Exception], float | None] = lambda _error: None
    """The seconds that the service asked to wait, or None: the minimum for the next wait."""
    max_attempts: int = 3
    """Calls in all, the first one included; ``backoff`` would take 0 as no limit."""
    deadline_seconds: float = 100
    """From the start of the first call; no later call starts after it."""
    longest_retry_after_seconds: float = 20
    """A service that asks for more ends the attempts at once, because the caller can use the time."""

    async def call(
        self, operation: Callable[..., Awaitable[T]], *arguments: object, stop: asyncio.Event | None = None
    ) -> T:
        """Call an ``async def`` until it returns, and return its value; raise its last exception when the attempts end.

        They end after ``max_attempts``, after an error that is not transient, before a wait that would pass the
        deadline or that exceeds ``longest_retry_after_seconds``, and when ``stop`` is set. A stop interrupts a wait,
        but not a call. The first call is made in any case.
        """
        if not inspect.iscoroutinefunction(operation):  # backoff would call it once and never retry
            message = "a retried operation is an async def"
            raise TypeError(message)
        stopped = stop or asyncio.Event()
        clock = asyncio.get_running_loop().time
        ends_at = clock() + self.deadline_seconds

        async def wait(failed: Any) -> None:
            """Wait for the next attempt, because ``backoff`` does not end its own wait early; raise if none follows."""
            error = failed["exception"]
            asked_seconds = self.retry_after(error) or 0.0
            seconds = max(self.backoff(failed["tries"]), asked_seconds)
            if asked_seconds > self.longest_retry_after_seconds or clock() + seconds >= ends_at:
                raise error
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), seconds)
            if stopped.is_set():
                raise error

        attempts = backoff.on_exception(
            backoff.constant,
            Exception,
            interval=0,
            max_tries=self.max_attempts,
            giveup=lambda error: stopped.is_set() or not self.is_transient(error),
            on_backoff=wait,
            jitter=None,
            logger=None,  # the default logs the exception's text
        )(operation)
        return await attempts(*arguments)

    def worst_case_seconds(self, call_seconds: float) -> float:
        """Return the longest duration of ``call`` if one operation takes at most ``call_seconds``."""
        return call_seconds if self.max_attempts == 1 else self.deadline_seconds + call_seconds


def parse_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Return the seconds that a Retry-After header asks to wait, or None (RFC 9110, 10.2.3: seconds, or a date).

    ``now`` is aware. A past date gives 0, more than a day gives a day. It accepts fractions of a second.
    """
    text = (value or "").strip()
    if number := _DELAY_SECONDS.fullmatch(text):
        seconds = 0.0 if number[1] else float(number[2])
        return min(seconds, LONGEST_RETRY_AFTER_SECONDS)
    with suppress(ValueError, OverflowError, IndexError, TypeError):  # parsedate_to_datetime raises all four
        moment = parsedate_to_datetime(text)  # the three forms of RFC 9110, 5.6.7
        seconds = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds()
        return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)
    return None
