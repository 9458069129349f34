"""Retries on an event loop that skips every wait."""

import asyncio
import selectors
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certjob.outbox.retry import RetryPolicy, exponential, full_jitter, parse_retry_after

NOW = datetime(2026, 3, 10, 2, 30, tzinfo=UTC)


class ServiceError(Exception):
    def __init__(self, text: str = "down", *, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


POLICY: dict[str, Any] = {
    "backoff": lambda _attempt: 1.0,
    "is_transient": lambda error: isinstance(error, ServiceError),
    "retry_after": lambda error: error.retry_after_seconds,
}


class SkippingSelector(selectors.DefaultSelector):
    """A selector that does not wait: its clock jumps to the time when the loop has something to do."""

    now_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_seconds += timeout or 0.0
        return super().select(0)


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop in which a sleep of any length takes no time."""

    def __init__(self) -> None:
        self.selector = SkippingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now_seconds


class Service:
    """A service that raises one error for each call (default: nine), then returns."""

    def __init__(
        self, *errors: BaseException, call_seconds: float = 0, retry_after_seconds: float | None = None
    ) -> None:
        failures = (ServiceError(f"failure {n}", retry_after_seconds=retry_after_seconds) for n in range(1, 10))
        self.errors = list(errors or failures)
        self.call_seconds = call_seconds
        self.began: list[float] = []
        """The time of each call."""
        self.took_seconds = 0.0

    async def __call__(self) -> str:
        self.began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.call_seconds)
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    @property
    def waits(self) -> list[float]:
        """The seconds between two calls."""
        return [round(later - earlier - self.call_seconds, 6) for earlier, later in pairwise(self.began)]

    def call(self, *, stop: asyncio.Event | None = None, **changed: Any) -> str | Exception:
        """Call the service once with the policy; return the result, or the service's error that it raises."""
        with asyncio.Runner(loop_factory=SkippingLoop) as runner:
            try:
                return runner.run(RetryPolicy(**POLICY | changed).call(self, stop=stop))
            except ServiceError as error:
                return error
            finally:
                self.took_seconds = runner.get_loop().time()


def test_transient_error_is_retried_until_success() -> None:
    """The backoff is asked for each failure, and a longer Retry-After replaces it."""
    service = Service(ServiceError("a"), ServiceError("b", retry_after_seconds=5), ServiceError("c"))

    ended = service.call(max_attempts=4, backoff=lambda attempt: attempt * 0.5)

    assert (ended, service.waits) == ("done", [0.5, 5, 1.5])


def test_last_exception_is_raised() -> None:
    """After the last attempt without a wait, and at once if the error is not transient."""
    for attempts in (1, 3):
        service = Service()
        assert str(service.call(max_attempts=attempts)) == f"failure {attempts}"
        assert (len(service.began), service.took_seconds) == (attempts, attempts - 1)

    for error in (KeyError("a bug"), TimeoutError("a bug"), KeyboardInterrupt()):
        service = Service(ServiceError(), error)
        with pytest.raises(type(error)) as raised:
            service.call()
        assert (raised.value, len(service.began)) == (error, 2)


def test_exponential_doubles_to_its_cap_and_full_jitter_spreads() -> None:
    """Neither overflows. Jitter separates callers that failed together."""
    backoff = exponential(base_seconds=0.5, cap_seconds=20)
    assert [backoff(attempt) for attempt in (1, 2, 3, 6, 7, 10_000)] == [0.5, 1, 2, 16, 20, 20]
    for attempt, longest in ((1, 4), (2, 8), (9, 10), (10_000, 10)):
        waits = [full_jitter(base_seconds=4, cap_seconds=10)(attempt) for _ in range(2000)]
        assert 0 <= min(waits) < longest / 8
        assert longest * 7 / 8 < max(waits) <= longest
        assert 0.43 < sum(waits) / len(waits) / longest < 0.57


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        pytest.param(2, [9, 9], id="shorter than the backoff"),
        pytest.param(20, [20, 20], id="at the limit"),
        pytest.param(20.5, [], id="beyond the limit"),
    ],
)
def test_retry_after_is_the_minimum_wait(asked: float, waits: list[float]) -> None:
    """A wait beyond the limit ends the attempts."""
    service = Service(retry_after_seconds=asked)

    service.call(backoff=lambda _: 9.0)

    assert service.waits == waits


def test_no_call_begins_after_the_deadline() -> None:
    """The duration of the calls counts, so a slow service gets fewer attempts."""
    service = Service()
    service.call(max_attempts=9, backoff=lambda _: 4.0, deadline_seconds=12)
    assert (service.waits, service.took_seconds) == ([4, 4], 8)

    service = Service(call_seconds=30)
    service.call(max_attempts=9, deadline_seconds=70)
    assert len(service.began) == 3


@given(calls=st.floats(0, 60), waits=st.floats(0, 30), attempts=st.integers(1, 6), asked=st.floats(0, 30))
@settings(max_examples=50, deadline=None)
def test_call_ends_within_its_worst_case(calls: float, waits: float, attempts: int, asked: float) -> None:
    """A caller with a lease relies on it, for every combination of slow calls and long waits."""
    service = Service(call_seconds=calls, retry_after_seconds=asked)
    changed: dict[str, Any] = {"max_attempts": attempts, "backoff": lambda _: waits}

    service.call(**changed)

    longest = RetryPolicy(**POLICY | changed).worst_case_seconds(calls)
    assert service.took_seconds <= longest + 1e-6
    assert longest == (calls if attempts == 1 else 100 + calls)


@pytest.mark.parametrize(
    "changed", [{"max_attempts": 0}, {"deadline_seconds": 0}, {"deadline_seconds": float("nan")}], ids=str
)
def test_policy_that_would_not_end_is_rejected(changed: dict[str, Any]) -> None:
    """``backoff`` would take 0 attempts as no limit."""
    with pytest.raises(ValueError, match=next(iter(changed))):
        Service().call(**changed)


@pytest.mark.parametrize(
    ("stop_after", "ended_after"),
    [
        pytest.param(0, 2, id="set before: the first call is made"),
        pytest.param(1, 2, id="during a call: it ends"),
        pytest.param(20, 20, id="during a wait: interrupted"),
    ],
)
def test_stop_ends_the_attempts(stop_after: float, ended_after: float) -> None:
    """The exception of the last call is raised."""

    class Stopping(Service):
        async def __call__(self) -> str:
            asyncio.get_running_loop().call_later(stop_after, stop.set)
            return await super().__call__()

    stop = asyncio.Event()
    if stop_after == 0:
        stop.set()
    service = Stopping(call_seconds=2)

    error = service.call(backoff=lambda _: 60.0, stop=stop)

    assert (str(error), len(service.began), service.took_seconds) == ("failure 1", 1, ended_after)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0),
        ("1.5", 1.5),
        ("-3", 0),
        pytest.param("9" * 5000, 86_400, id="5000 digits"),
        ("Tue, 10 Mar 2026 02:30:20 GMT", 20),
        ("Tuesday, 10-Mar-26 02:30:20 GMT", 20),
        ("Tue Mar 10 02:30:20 2026", 20),
        ("Tue, 10 Mar 2026 03:30:20 +0100", 20),
        ("Tue, 10 Mar 2026 02:29:00 GMT", 0),
        ("Mon, 10 Mar 2036 02:30:00 GMT", 86_400),
        ("Tue, 31 Feb 2026 02:30:00 GMT", None),
        ("Tue, 10 Mar 99999 02:30:00 GMT", None),
        ("10 minutes", None),
        ("1e3", None),
    ],
)
def test_retry_after_is_understood_in_both_its_forms(value: str | None, seconds: float | None) -> None:
    """RFC 9110, 10.2.3: seconds or one of three forms of date. An invalid value counts as absent."""
    assert parse_retry_after(value, now=NOW) == seconds
