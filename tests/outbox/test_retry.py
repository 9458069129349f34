"""Retries on an event loop that skips every wait."""

import asyncio
import selectors
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from certjob.outbox.calls import run_alone
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

    def __init__(self, *errors: BaseException, call_seconds: float = 0) -> None:
        self.errors = list(errors) or [ServiceError(f"failure {number}") for number in range(1, 10)]
        self.call_seconds = call_seconds
        self.began: list[float] = []
        """The time of each call."""
        self.took_seconds = 0.0

    @property
    def waits(self) -> list[float]:
        """The seconds between two calls."""
        return [later - earlier - self.call_seconds for earlier, later in pairwise(self.began)]

    async def serve(self) -> str:
        self.began.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.call_seconds)
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    def call(self, *, stop_after: float = 3600, **changed: Any) -> str | Exception:
        """Call the service with the policy; return the result, or the service's error that it raises."""

        async def call() -> str:
            stop = asyncio.Event()
            asyncio.get_running_loop().call_later(stop_after, stop.set)
            return await RetryPolicy(**POLICY | changed).call(self.serve, stop=stop)

        with asyncio.Runner(loop_factory=SkippingLoop) as runner:
            try:
                return runner.run(call())
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


def test_only_an_async_def_can_be_retried() -> None:
    """A lambda would be called once and never again."""
    service = Service()
    retried = RetryPolicy(**POLICY).call(lambda called: called.serve(), service)

    with pytest.raises(TypeError):
        run_alone(retried)

    assert service.began == []


def test_exponential_doubles_to_its_cap_and_full_jitter_spreads() -> None:
    """Neither overflows. Jitter separates callers that failed together."""
    backoff = exponential(base_seconds=0.5, cap_seconds=20)
    assert [backoff(attempt) for attempt in (1, 2, 3, 6, 7, 10_000)] == [0.5, 1, 2, 16, 20, 20]

    waits = [full_jitter(base_seconds=4, cap_seconds=10)(2) for _ in range(500)]
    assert 0 <= min(waits) < 1
    assert 7 < max(waits) <= 8


@pytest.mark.parametrize(("asked", "waits"), [(2, [9, 9]), (20, [20, 20]), (20.5, [])])
def test_retry_after_is_the_minimum_wait(asked: float, waits: list[float]) -> None:
    """Beyond 20 seconds, it ends the attempts."""
    service = Service(*(ServiceError(retry_after_seconds=asked) for _ in range(9)))

    service.call(backoff=lambda _: 9.0)

    assert service.waits == waits


def test_no_call_begins_after_the_deadline() -> None:
    """A slow call ends within the worst case, on which a caller with a lease relies."""
    quick, slow = Service(), Service(call_seconds=30)

    quick.call(max_attempts=9, backoff=lambda _: 4.0, deadline_seconds=12)
    slow.call(max_attempts=9, deadline_seconds=70)

    assert (quick.waits, quick.took_seconds) == ([4, 4], 8)
    assert (len(slow.began), slow.took_seconds) == (3, 92)
    assert RetryPolicy(**POLICY, deadline_seconds=70).worst_case_seconds(30) == 100
    assert RetryPolicy(**POLICY, max_attempts=1).worst_case_seconds(30) == 30


@pytest.mark.parametrize(
    ("stop_after", "ended_after"),
    [pytest.param(1, 2, id="during a call"), pytest.param(20, 20, id="during a wait")],
)
def test_stop_ends_the_attempts(stop_after: float, ended_after: float) -> None:
    """It interrupts a wait, but no call. The exception of the last call is raised."""
    service = Service(call_seconds=2)

    error = service.call(backoff=lambda _: 60.0, stop_after=stop_after)

    assert (str(error), len(service.began), service.took_seconds) == ("failure 1", 1, ended_after)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("1.5", 1.5),
        ("-3", 0),
        pytest.param("9" * 5000, 86_400, id="5000 digits"),
        ("Tue, 10 Mar 2026 02:30:20 GMT", 20),
        ("Tue Mar 10 02:30:20 2026", 20),
        ("Tue, 10 Mar 2026 02:29:00 GMT", 0),
        ("Mon, 10 Mar 2036 02:30:00 GMT", 86_400),
        ("Tue, 31 Feb 2026 02:30:00 GMT", None),
    ],
)
def test_retry_after_is_understood_in_both_its_forms(value: str | None, seconds: float | None) -> None:
    """RFC 9110, 10.2.3: seconds or a date. An invalid value counts as absent."""
    assert parse_retry_after(value, now=NOW) == seconds
