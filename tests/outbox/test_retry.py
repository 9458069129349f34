"""When a failed operation is tried again, and when the tries end; time is the test's own."""

import ast
import asyncio
import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certjob.outbox import retry
from certjob.outbox.retry import RetryPolicy, constant, exponential, full_jitter, parse_retry_after, wait

NOW = datetime(2026, 3, 10, 2, 30, tzinfo=UTC)


class ServiceError(Exception):
    """What the service under test raises."""

    def __init__(self, text: str = "down", *, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class Service:
    """Fails as told, one error for each call, then returns; its time moves by its calls and by the policy's waits."""

    def __init__(self, *errors: BaseException, call_seconds: float = 0, stops_in_wait: int = 0) -> None:
        self.errors = list(errors)
        self.call_seconds = call_seconds
        self.stops_in_wait = stops_in_wait
        self.calls = 0
        self.waits: list[float] = []
        self.now_seconds = 1000.0

    async def __call__(self) -> str:
        self.calls += 1
        self.now_seconds += self.call_seconds
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def sleep(self, seconds: float, stop: asyncio.Event | None) -> None:
        self.waits.append(seconds)
        self.now_seconds += seconds
        if stop is not None and len(self.waits) == self.stops_in_wait:
            stop.set()

    def policy(self, **changed: Any) -> RetryPolicy:
        usual = {
            "backoff": constant(seconds=1),
            "is_transient": lambda error: isinstance(error, ServiceError),
            "retry_after": lambda error: error.retry_after_seconds,
            "clock": lambda: self.now_seconds,
            "sleep": self.sleep,
        }
        return RetryPolicy(**usual | changed)

    def call(self, *, stop: asyncio.Event | None = None, on_wait: retry.OnWait | None = None, **changed: Any) -> str:
        """One call of the policy."""
        return asyncio.run(self.policy(**changed).call(self, stop=stop, on_wait=on_wait))

    def fail(self, **named: Any) -> str:
        """One call that ends in vain; the text of its error."""
        with pytest.raises(ServiceError) as raised:
            self.call(**named)
        return str(raised.value)


def failing(times: int = 9, *, call_seconds: float = 0, stops_in_wait: int = 0, **named: Any) -> Service:
    errors = [ServiceError(f"failure {number}", **named) for number in range(1, times + 1)]
    return Service(*errors, call_seconds=call_seconds, stops_in_wait=stops_in_wait)


def test_a_transient_error_is_tried_again_until_it_succeeds() -> None:
    """The caller hears of each wait before it begins; the policy's functions are asked once for each failure."""
    service = Service(ServiceError("a"), ServiceError("b", retry_after_seconds=5), ServiceError("c"))
    judged: list[str] = []
    asked: list[int] = []
    heard: list[tuple[str, float, int]] = []

    ended = service.call(
        max_attempts=4,
        backoff=lambda attempt: asked.append(attempt) or attempt * 0.5,  # type: ignore[func-returns-value]
        is_transient=lambda error: not judged.append(str(error)),  # type: ignore[func-returns-value]
        on_wait=lambda error, seconds: heard.append((str(error), seconds, len(service.waits))),
    )

    assert (ended, service.calls) == ("done", 4)
    assert (judged, asked) == (["a", "b", "c"], [1, 2, 3])
    assert service.waits == [0.5, 5, 1.5]
    assert heard == [("a", 0.5, 0), ("b", 5, 1), ("c", 1.5, 2)]


@pytest.mark.parametrize("attempts", [1, 3])
def test_the_last_exception_is_raised_after_the_last_attempt(attempts: int) -> None:
    """Not the first one, and without a wait after it."""
    service = failing()

    assert service.fail(max_attempts=attempts) == f"failure {attempts}"

    assert (service.calls, len(service.waits)) == (attempts, attempts - 1)


@pytest.mark.parametrize("error", [KeyError("a bug"), KeyboardInterrupt()])
def test_an_error_that_is_not_transient_is_raised_at_once(error: BaseException) -> None:
    service = Service(ServiceError(), error)

    with pytest.raises(type(error)) as raised:
        service.call()

    assert raised.value is error
    assert service.calls == 2


def test_exponential_doubles_up_to_its_cap_and_full_jitter_spreads_callers_over_it() -> None:
    """It does not overflow; many callers that failed together do not come back together."""
    backoff = exponential(base_seconds=0.5, cap_seconds=20)
    assert [backoff(attempt) for attempt in range(1, 8)] == [0.5, 1, 2, 4, 8, 16, 20]
    assert backoff(10_000) == 20
    for attempt, longest in ((1, 4), (2, 8), (9, 10), (10_000, 10)):
        waits = [full_jitter(base_seconds=4, cap_seconds=10)(attempt) for _ in range(2000)]
        assert 0 <= min(waits) < longest / 8
        assert longest * 7 / 8 < max(waits) <= longest
        assert 0.43 < sum(waits) / len(waits) / longest < 0.57


def test_retry_after_is_a_floor_that_no_jitter_shortens() -> None:
    """A longer backoff stays longer; what is beyond the limit ends the tries, and the caller puts it off."""
    service = Service(ServiceError(retry_after_seconds=7), ServiceError(retry_after_seconds=20))
    service.call(backoff=full_jitter(base_seconds=0.5, cap_seconds=20))
    assert service.waits == [7, 20]
    service = failing(1, retry_after_seconds=2)
    service.call(backoff=constant(seconds=9))
    assert service.waits == [9]

    service = failing(retry_after_seconds=20.5)
    service.fail()
    assert (service.calls, service.waits) == (1, [])


def test_nothing_is_begun_that_would_pass_the_deadline() -> None:
    """The time of the calls counts: a slow service gets fewer attempts."""
    service = failing()
    service.fail(max_attempts=9, backoff=constant(seconds=4), deadline_seconds=12)
    assert (service.calls, service.waits) == (3, [4, 4])

    service = failing(call_seconds=30)
    service.fail(max_attempts=9, deadline_seconds=70)
    assert service.calls == 3


@given(calls=st.floats(0, 60), waits=st.floats(0, 30), attempts=st.integers(1, 6), asked=st.floats(0, 30))
@settings(max_examples=50, deadline=None)
def test_no_call_takes_longer_than_the_worst_case(calls: float, waits: float, attempts: int, asked: float) -> None:
    """What a caller with a lease counts on, for every combination of slow calls and long waits."""
    service = failing(call_seconds=calls, retry_after_seconds=asked)

    service.fail(max_attempts=attempts, backoff=constant(seconds=waits))

    assert service.now_seconds - 1000 <= service.policy(max_attempts=attempts).worst_case_seconds(calls) + 1e-6


def test_the_worst_case_is_a_last_call_that_starts_just_before_the_deadline() -> None:
    """100 s of tries and a call of 30 s fit into a lease of five minutes. A policy that could not end is refused."""
    assert Service().policy().worst_case_seconds(30) == 130
    assert Service().policy(max_attempts=1).worst_case_seconds(30) == 30
    for name, value in (("max_attempts", 0), ("deadline_seconds", 0), ("deadline_seconds", float("nan"))):
        with pytest.raises(ValueError, match=name):
            Service().policy(**{name: value})


def test_a_stop_ends_the_tries_during_a_call_and_during_a_wait() -> None:
    """Whoever asked for the end does not get one more call; the first one is always made."""
    stop = asyncio.Event()
    stop.set()
    service = failing()
    assert service.fail(stop=stop) == "failure 1"
    assert (service.calls, service.waits) == (1, [])

    service = failing(stops_in_wait=2)
    assert service.fail(stop=asyncio.Event(), max_attempts=9) == "failure 2"
    assert service.calls == 2


def test_a_real_wait_is_cut_short_by_the_stop_and_lasts_as_long_as_it_says() -> None:
    stop = asyncio.Event()
    started = time.monotonic()

    failing().fail(
        backoff=constant(seconds=60),
        sleep=wait,
        stop=stop,
        on_wait=lambda *_: asyncio.get_running_loop().call_later(0.02, stop.set),
    )

    assert time.monotonic() - started < 10
    for unset in (asyncio.Event(), None):
        started = time.monotonic()
        asyncio.run(wait(0.02, unset))
        assert time.monotonic() - started >= 0.019


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("  7 ", 7),
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
        ("nan", None),
        ("٣", None),
    ],
)
def test_retry_after_is_understood_in_both_its_forms(value: str | None, seconds: float | None) -> None:
    """RFC 9110, 10.2.3: seconds or one of three kinds of date; nonsense counts as absent, the past as now."""
    assert parse_retry_after(value, now=NOW) == seconds


def test_the_example_for_the_next_service_runs_as_it_stands() -> None:
    """The ten lines in the module's docstring, on a service that is busy twice."""

    class AccountingError(Exception):
        status = 503
        retry_after_seconds = 0.01

    accounting = Service(AccountingError(), AccountingError())
    names: dict[str, object] = vars(retry) | {
        "AccountingError": AccountingError,
        "accounting": SimpleNamespace(post=lambda _voucher: accounting()),
        "voucher": "4711",
        "shutting_down": asyncio.Event(),
        "exponential": lambda **_: constant(seconds=0),
    }
    lines = [line[4:] for line in (retry.__doc__ or "").splitlines() if line.startswith("    ")]

    code = compile("\n".join(lines), "the example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    asyncio.run(eval(code, names))  # noqa: S307 - our own documentation

    assert (names["receipt"], accounting.calls) == ("done", 3)
    assert len(lines) <= 10
