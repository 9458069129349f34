"""When a failed operation is tried again, and when the tries end; time is the test's own."""

import ast
import asyncio
import dataclasses
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certjob.outbox import retry
from certjob.outbox.retry import RetryPolicy, constant, exponential, full_jitter, parse_retry_after, wait

T = TypeVar("T")

NOW = datetime(2026, 3, 10, 2, 30, tzinfo=UTC)


class ServiceError(Exception):
    """What the service under test raises."""

    def __init__(self, text: str = "down", *, transient: bool = True, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.transient = transient
        self.retry_after_seconds = retry_after_seconds


def is_transient(error: Exception) -> bool:
    return isinstance(error, ServiceError) and error.transient


def retry_after(error: Exception) -> float | None:
    return error.retry_after_seconds if isinstance(error, ServiceError) else None


class Time:
    """A clock that only the policy's waits and the operation's work move."""

    def __init__(self, *, stop_during_wait: int | None = None) -> None:
        self.now_seconds = 1000.0
        self.waits: list[float] = []
        self.stop_during_wait = stop_during_wait

    def clock(self) -> float:
        return self.now_seconds

    async def sleep(self, seconds: float, stop: asyncio.Event | None) -> None:
        self.waits.append(seconds)
        self.now_seconds += seconds
        if len(self.waits) == self.stop_during_wait:
            assert stop is not None
            stop.set()

    def policy(
        self, *, max_attempts: int = 3, backoff_seconds: float = 1, deadline_seconds: float = 100, longest: float = 20
    ) -> RetryPolicy:
        return RetryPolicy(
            max_attempts=max_attempts,
            backoff=constant(seconds=backoff_seconds),
            deadline_seconds=deadline_seconds,
            longest_retry_after_seconds=longest,
            is_transient=is_transient,
            retry_after=retry_after,
            clock=self.clock,
            sleep=self.sleep,
        )


def call(
    policy: RetryPolicy,
    operation: Callable[[], Awaitable[T]],
    *,
    stop: asyncio.Event | None = None,
    on_wait: retry.OnWait | None = None,
) -> T:
    """Run one call of the policy in an event loop of its own."""
    return asyncio.run(policy.call(operation, stop=stop, on_wait=on_wait))


class Operation:
    """Fails as told, one error for each call, then returns; each call takes ``call_seconds`` of the test's time."""

    def __init__(self, *errors: BaseException, time: Time | None = None, call_seconds: float = 0) -> None:
        self.errors = list(errors)
        self.calls = 0
        self.time = time
        self.call_seconds = call_seconds

    async def __call__(self) -> str:
        self.calls += 1
        if self.time is not None:
            self.time.now_seconds += self.call_seconds
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def tries(policy: RetryPolicy, operation: Operation, **named: Any) -> int:
    """Call in vain; how many calls were made."""
    with pytest.raises(ServiceError):
        call(policy, operation, **named)
    return operation.calls


def test_a_transient_error_is_tried_again_until_it_succeeds() -> None:
    """The caller hears of each wait before it begins; the policy's functions are asked once for each failure."""
    time = Time()
    judged: list[str] = []
    asked: list[int] = []
    heard: list[tuple[str, float, int]] = []
    policy = RetryPolicy(
        max_attempts=4,
        backoff=lambda attempt: asked.append(attempt) or attempt * 0.5,  # type: ignore[func-returns-value]
        is_transient=lambda error: not judged.append(str(error)),  # type: ignore[func-returns-value]
        retry_after=retry_after,
        clock=time.clock,
        sleep=time.sleep,
    )
    operation = Operation(ServiceError("a"), ServiceError("b", retry_after_seconds=5), ServiceError("c"))

    assert (
        call(policy, operation, on_wait=lambda e, seconds: heard.append((str(e), seconds, len(time.waits)))) == "done"
    )

    assert operation.calls == 4
    assert judged == ["a", "b", "c"]
    assert asked == [1, 2, 3]
    assert time.waits == [0.5, 5, 1.5]
    assert heard == [("a", 0.5, 0), ("b", 5, 1), ("c", 1.5, 2)]
    assert call(policy, Operation()) == "done"


@pytest.mark.parametrize("attempts", [1, 3])
def test_the_last_exception_is_raised_after_the_last_attempt(attempts: int) -> None:
    """Not the first one, and without a wait after it."""
    time = Time()
    operation = Operation(*[ServiceError(f"failure {number}") for number in range(1, 10)])

    with pytest.raises(ServiceError, match=f"failure {attempts}"):
        call(time.policy(max_attempts=attempts), operation)

    assert operation.calls == attempts
    assert len(time.waits) == attempts - 1


@pytest.mark.parametrize("error", [ServiceError(transient=False), KeyError("a bug"), KeyboardInterrupt()])
def test_an_error_that_is_not_transient_is_raised_at_once(error: BaseException) -> None:
    operation = Operation(ServiceError(), error)

    with pytest.raises(type(error)) as raised:
        call(Time().policy(), operation)

    assert raised.value is error
    assert operation.calls == 2


@given(attempt=st.integers(min_value=1, max_value=3000), base_seconds=st.floats(0.001, 60), cap=st.floats(0.001, 600))
@settings(max_examples=40)
def test_full_jitter_stays_between_nothing_and_the_exponential_wait(
    attempt: int, base_seconds: float, cap: float
) -> None:
    seconds = full_jitter(base_seconds=base_seconds, cap_seconds=cap)(attempt)

    assert 0 <= seconds <= exponential(base_seconds=base_seconds, cap_seconds=cap)(attempt)


def test_exponential_doubles_up_to_its_cap_and_full_jitter_spreads_callers_over_it() -> None:
    """It does not overflow; many callers that failed together do not come back together."""
    backoff = exponential(base_seconds=0.5, cap_seconds=20)
    assert [backoff(attempt) for attempt in range(1, 8)] == [0.5, 1, 2, 4, 8, 16, 20]
    assert backoff(10_000) == 20
    waits = [full_jitter(base_seconds=8, cap_seconds=8)(1) for _ in range(2000)]
    assert min(waits) < 1
    assert max(waits) > 7
    assert 3.5 < sum(waits) / len(waits) < 4.5


def test_retry_after_is_a_floor_that_no_jitter_shortens() -> None:
    """A longer backoff stays longer; what is beyond the limit ends the tries, and the caller puts it off."""
    time = Time()
    policy = dataclasses.replace(time.policy(), backoff=full_jitter(base_seconds=0.5, cap_seconds=20))
    call(policy, Operation(ServiceError(retry_after_seconds=7), ServiceError(retry_after_seconds=20)))
    call(time.policy(backoff_seconds=9), Operation(ServiceError(retry_after_seconds=2)))
    assert time.waits == [7, 20, 9]

    assert tries(time.policy(), Operation(ServiceError(retry_after_seconds=20.5))) == 1
    assert len(time.waits) == 3


def test_nothing_is_begun_that_would_pass_the_deadline() -> None:
    """The time of the calls counts: a slow service gets fewer attempts."""
    time = Time()
    policy = time.policy(max_attempts=9, backoff_seconds=4, deadline_seconds=10)
    assert tries(policy, Operation(*[ServiceError()] * 9)) == 3
    assert time.waits == [4, 4]

    policy = time.policy(max_attempts=9, deadline_seconds=70)
    assert tries(policy, Operation(*[ServiceError()] * 9, time=time, call_seconds=30)) == 3


@given(
    call_seconds=st.floats(0, 60),
    backoff_seconds=st.floats(0, 30),
    max_attempts=st.integers(1, 6),
    asked_seconds=st.floats(0, 30),
)
@settings(max_examples=50, deadline=None)
def test_no_call_takes_longer_than_the_worst_case(
    call_seconds: float, backoff_seconds: float, max_attempts: int, asked_seconds: float
) -> None:
    """What a caller with a lease counts on, for every combination of slow calls and long waits."""
    time = Time()
    policy = time.policy(max_attempts=max_attempts, backoff_seconds=backoff_seconds)
    errors = [ServiceError(retry_after_seconds=asked_seconds) for _ in range(10)]

    tries(policy, Operation(*errors, time=time, call_seconds=call_seconds))

    assert time.now_seconds - 1000 <= policy.worst_case_seconds(call_seconds) + 1e-6


def test_the_worst_case_is_a_last_call_that_starts_just_before_the_deadline() -> None:
    """100 s of tries and a call of 30 s fit into a lease of five minutes."""
    assert RetryPolicy(is_transient=is_transient).worst_case_seconds(30) == 130
    assert RetryPolicy(is_transient=is_transient, max_attempts=1).worst_case_seconds(30) == 30


def test_a_stop_ends_the_tries_during_a_call_and_during_a_wait() -> None:
    """Whoever asked for the end does not get one more call; the first one is always made."""
    stop = asyncio.Event()
    stop.set()
    time = Time()
    assert tries(time.policy(), Operation(ServiceError("only")), stop=stop) == 1
    assert time.waits == []

    operation = Operation(ServiceError("first"), ServiceError("second"), ServiceError("third"))
    with pytest.raises(ServiceError, match="second"):
        call(Time(stop_during_wait=2).policy(), operation, stop=asyncio.Event())
    assert operation.calls == 2


def test_a_real_wait_is_cut_short_by_the_stop_and_lasts_as_long_as_it_says() -> None:
    stop = asyncio.Event()
    policy = RetryPolicy(backoff=constant(seconds=60), is_transient=is_transient)
    set_soon = lambda *_: asyncio.get_running_loop().call_later(0.02, stop.set)  # noqa: E731
    started = time.monotonic()

    tries(policy, Operation(ServiceError()), stop=stop, on_wait=set_soon)

    assert time.monotonic() - started < 10
    for unset in (asyncio.Event(), None):
        started = time.monotonic()
        asyncio.run(wait(0.02, unset))
        assert time.monotonic() - started >= 0.019


def test_a_policy_that_could_not_end_is_refused() -> None:
    """The loop underneath would take 0 attempts for no limit."""
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=0, is_transient=is_transient)
    with pytest.raises(ValueError, match="deadline_seconds"):
        RetryPolicy(deadline_seconds=float("nan"), is_transient=is_transient)


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


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,6} [0-9:]{3,12} [-+A-Z0-9]{0,6}"))
@settings(max_examples=60, deadline=None)
def test_no_retry_after_breaks_the_caller(value: str) -> None:
    """Whatever a server writes there, the answer is nothing or between now and a day."""
    seconds = parse_retry_after(value, now=NOW)

    assert seconds is None or 0 <= seconds <= 86_400


def test_the_example_for_the_next_service_runs_as_it_stands() -> None:
    """The lines in the module's docstring, on a service that is busy twice."""

    class AccountingError(Exception):
        status = 503
        retry_after_seconds = 0.01

    class Accounting:
        calls = 0

        async def post(self, voucher: str) -> str:
            self.calls += 1
            if self.calls < 3:
                raise AccountingError
            return f"receipt for {voucher}"

    assert retry.__doc__ is not None
    lines = [line[4:] for line in retry.__doc__.splitlines() if line.startswith("    ")]
    assert len(lines) <= 10
    accounting = Accounting()
    names: dict[str, object] = vars(retry) | {
        "AccountingError": AccountingError,
        "accounting": accounting,
        "voucher": "4711",
        "shutting_down": asyncio.Event(),
        "exponential": lambda **_: constant(seconds=0),
    }

    code = compile("\n".join(lines), "the example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    asyncio.run(eval(code, names))  # noqa: S307 - our own documentation

    assert names["receipt"] == "receipt for 4711"
    assert accounting.calls == 3
