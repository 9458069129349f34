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

    def __init__(self, *errors: BaseException, call_seconds: float = 0) -> None:
        self.errors = list(errors)
        self.call_seconds = call_seconds
        self.calls = 0
        self.waits: list[float] = []
        self.now_seconds = 1000.0
        self.policy: dict[str, Any] = {
            "backoff": constant(seconds=1),
            "is_transient": lambda error: isinstance(error, ServiceError),
            "retry_after": lambda error: error.retry_after_seconds,
            "clock": lambda: self.now_seconds,
            "sleep": self.sleep,
        }

    async def __call__(self) -> str:
        self.calls += 1
        self.now_seconds += self.call_seconds
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def sleep(self, seconds: float, _stop: asyncio.Event | None) -> None:
        self.waits.append(seconds)
        self.now_seconds += seconds

    def call(
        self, *, stop: asyncio.Event | None = None, on_wait: retry.OnWait | None = None, **changed: Any
    ) -> str | Exception:
        """One call of the policy: what it returns, or the service's error that it raises."""
        policy = RetryPolicy(**self.policy | changed)
        try:
            return asyncio.run(policy.call(self, stop=stop, on_wait=on_wait))
        except ServiceError as error:
            return error


def failing(*, call_seconds: float = 0, retry_after_seconds: float | None = None) -> Service:
    """Fails nine times."""
    texts = [f"failure {number}" for number in range(1, 10)]
    errors = [ServiceError(text, retry_after_seconds=retry_after_seconds) for text in texts]
    return Service(*errors, call_seconds=call_seconds)


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
    assert (judged, asked, service.waits) == (["a", "b", "c"], [1, 2, 3], [0.5, 5, 1.5])
    assert heard == [("a", 0.5, 0), ("b", 5, 1), ("c", 1.5, 2)]


def test_the_last_exception_is_raised_after_the_last_attempt_and_what_is_not_transient_at_once() -> None:
    """Not the first one, and without a wait after it."""
    for attempts in (1, 3):
        service = failing()
        assert str(service.call(max_attempts=attempts)) == f"failure {attempts}"
        assert (service.calls, len(service.waits)) == (attempts, attempts - 1)

    for error in (KeyError("a bug"), KeyboardInterrupt()):
        service = Service(ServiceError(), error)
        with pytest.raises(type(error)) as raised:
            service.call()
        assert (raised.value, service.calls) == (error, 2)


def test_exponential_doubles_up_to_its_cap_and_full_jitter_spreads_callers_over_it() -> None:
    """It does not overflow; many callers that failed together do not come back together."""
    backoff = exponential(base_seconds=0.5, cap_seconds=20)
    assert [backoff(attempt) for attempt in (1, 2, 3, 6, 7, 10_000)] == [0.5, 1, 2, 16, 20, 20]
    for attempt, longest in ((1, 4), (2, 8), (9, 10), (10_000, 10)):
        waits = [full_jitter(base_seconds=4, cap_seconds=10)(attempt) for _ in range(2000)]
        assert 0 <= min(waits) < longest / 8
        assert longest * 7 / 8 < max(waits) <= longest
        assert 0.43 < sum(waits) / len(waits) / longest < 0.57


def test_retry_after_is_a_floor_that_no_jitter_shortens() -> None:
    """A longer backoff stays longer; what is beyond the limit ends the tries, and the caller puts it off."""
    for asked, backoff, waits in (
        (7, full_jitter(base_seconds=0.5, cap_seconds=20), [7, 7]),
        (20, constant(seconds=1), [20, 20]),
        (2, constant(seconds=9), [9, 9]),
        (20.5, constant(seconds=1), []),
    ):
        service = failing(retry_after_seconds=asked)
        service.call(backoff=backoff)
        assert service.waits == waits


def test_nothing_is_begun_that_would_pass_the_deadline() -> None:
    """The time of the calls counts: a slow service gets fewer attempts."""
    service = failing()
    service.call(max_attempts=9, backoff=constant(seconds=4), deadline_seconds=12)
    assert (service.calls, service.waits) == (3, [4, 4])

    service = failing(call_seconds=30)
    service.call(max_attempts=9, deadline_seconds=70)
    assert service.calls == 3


@given(calls=st.floats(0, 60), waits=st.floats(0, 30), attempts=st.integers(1, 6), asked=st.floats(0, 30))
@settings(max_examples=50, deadline=None)
def test_no_call_takes_longer_than_the_worst_case(calls: float, waits: float, attempts: int, asked: float) -> None:
    """What a caller with a lease counts on, for every combination of slow calls and long waits."""
    service = failing(call_seconds=calls, retry_after_seconds=asked)
    changed: dict[str, Any] = {"max_attempts": attempts, "backoff": constant(seconds=waits)}

    service.call(**changed)

    longest = RetryPolicy(**service.policy | changed).worst_case_seconds(calls)
    assert service.now_seconds - 1000 <= longest + 1e-6
    assert longest == (calls if attempts == 1 else 100 + calls)


@pytest.mark.parametrize(
    "changed", [{"max_attempts": 0}, {"deadline_seconds": 0}, {"deadline_seconds": float("nan")}], ids=str
)
def test_a_policy_that_could_not_end_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changed))):
        Service().call(**changed)


def test_a_stop_ends_the_tries_during_a_call_and_during_a_wait() -> None:
    """Whoever asked for the end does not get one more call; the first one is always made. A real wait is cut short."""
    stop = asyncio.Event()
    stop.set()
    service = failing()
    assert str(service.call(stop=stop)) == "failure 1"
    assert (service.calls, service.waits) == (1, [])

    service, stop, started = failing(), asyncio.Event(), time.monotonic()
    error = service.call(
        backoff=constant(seconds=60),
        sleep=wait,
        stop=stop,
        on_wait=lambda *_: asyncio.get_running_loop().call_later(0.02, stop.set),
    )
    assert (str(error), service.calls) == ("failure 1", 1)
    assert time.monotonic() - started < 10


def test_a_real_wait_lasts_as_long_as_it_says() -> None:
    for unset in (asyncio.Event(), None):
        started = time.monotonic()
        asyncio.run(wait(0.02, unset))
        assert time.monotonic() - started >= 0.019


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
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
