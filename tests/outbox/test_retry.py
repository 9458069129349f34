"""When a failed operation is tried again, and when the tries end; time is the test's own."""

import ast
import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TypeVar

import pytest
from hypothesis import given
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

    def __init__(self, *errors: Exception, time: Time | None = None, call_seconds: float = 0) -> None:
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


def test_an_operation_that_succeeds_is_called_once() -> None:
    """No error, no wait, its value."""
    time = Time()
    operation = Operation()

    assert call(time.policy(), operation) == "done"

    assert operation.calls == 1
    assert time.waits == []


def test_a_transient_error_is_tried_again_until_it_succeeds() -> None:
    """Two failures, two waits, the third call's value."""
    time = Time()
    operation = Operation(ServiceError(), ServiceError())

    assert call(time.policy(), operation) == "done"

    assert operation.calls == 3
    assert time.waits == [1, 1]


def test_the_last_exception_is_raised_after_the_last_attempt() -> None:
    """Not the first one, and without a wait after it."""
    time = Time()
    operation = Operation(*[ServiceError(f"failure {number}") for number in range(1, 10)])

    with pytest.raises(ServiceError, match="failure 3"):
        call(time.policy(), operation)

    assert operation.calls == 3
    assert len(time.waits) == 2


def test_one_attempt_means_no_retry() -> None:
    """``max_attempts`` counts the first call, too."""
    time = Time()
    operation = Operation(ServiceError(), ServiceError())

    with pytest.raises(ServiceError):
        call(time.policy(max_attempts=1), operation)

    assert operation.calls == 1


@pytest.mark.parametrize("error", [ServiceError(transient=False), KeyError("a programming error")])
def test_an_error_that_is_not_transient_is_raised_at_once(error: Exception) -> None:
    """Trying again would only repeat it."""
    time = Time()
    operation = Operation(ServiceError(), error)

    with pytest.raises(type(error)) as raised:
        call(time.policy(), operation)

    assert raised.value is error
    assert operation.calls == 2


def test_the_backoff_is_asked_for_each_attempt_by_its_number() -> None:
    """A strategy is a plain function from the attempt's number, 1 for the first, to seconds."""
    time = Time()
    asked: list[int] = []
    policy = RetryPolicy(
        max_attempts=4,
        backoff=lambda attempt: asked.append(attempt) or attempt * 0.5,  # type: ignore[func-returns-value]
        is_transient=is_transient,
        clock=time.clock,
        sleep=time.sleep,
    )

    call(policy, Operation(ServiceError(), ServiceError(), ServiceError()))

    assert asked == [1, 2, 3]
    assert time.waits == [0.5, 1.0, 1.5]


def test_exponential_doubles_up_to_its_cap() -> None:
    """And does not overflow, however many attempts there were."""
    backoff = exponential(base_seconds=0.5, cap_seconds=20)

    assert [backoff(attempt) for attempt in range(1, 8)] == [0.5, 1, 2, 4, 8, 16, 20]
    assert backoff(10_000) == 20


@given(attempt=st.integers(min_value=1, max_value=3000), base_seconds=st.floats(0.001, 60), cap=st.floats(0.001, 600))
def test_full_jitter_stays_between_nothing_and_the_exponential_wait(
    attempt: int, base_seconds: float, cap: float
) -> None:
    """For every attempt, base and cap."""
    seconds = full_jitter(base_seconds=base_seconds, cap_seconds=cap)(attempt)

    assert 0 <= seconds <= exponential(base_seconds=base_seconds, cap_seconds=cap)(attempt)


def test_full_jitter_spreads_callers_over_the_whole_wait() -> None:
    """Many callers that failed together do not come back together."""
    backoff = full_jitter(base_seconds=8, cap_seconds=8)
    waits = [backoff(1) for _ in range(2000)]

    assert min(waits) < 1
    assert max(waits) > 7
    assert 3.5 < sum(waits) / len(waits) < 4.5


def test_retry_after_is_a_floor_that_no_jitter_shortens() -> None:
    """A wait that was asked for is kept exactly; a longer backoff stays longer."""
    time = Time()
    policy = RetryPolicy(
        backoff=full_jitter(base_seconds=0.5, cap_seconds=20),
        is_transient=is_transient,
        retry_after=retry_after,
        clock=time.clock,
        sleep=time.sleep,
    )
    call(policy, Operation(ServiceError(retry_after_seconds=7), ServiceError(retry_after_seconds=20)))
    assert time.waits == [7, 20]

    time = Time()
    call(time.policy(backoff_seconds=9), Operation(ServiceError(retry_after_seconds=2)))
    assert time.waits == [9]


def test_a_retry_after_beyond_the_limit_ends_the_tries() -> None:
    """The caller puts it off instead of sleeping through it."""
    time = Time()
    operation = Operation(ServiceError(retry_after_seconds=20.5))

    with pytest.raises(ServiceError):
        call(time.policy(), operation)

    assert operation.calls == 1
    assert time.waits == []


def test_a_wait_that_would_pass_the_deadline_is_not_begun() -> None:
    """The tries end at once: nothing could come of waiting."""
    time = Time()
    operation = Operation(*[ServiceError()] * 9)

    with pytest.raises(ServiceError):
        call(time.policy(max_attempts=9, backoff_seconds=4, deadline_seconds=10), operation)

    assert operation.calls == 3
    assert time.waits == [4, 4]


def test_the_time_of_the_calls_counts_for_the_deadline() -> None:
    """A slow service gets fewer attempts."""
    time = Time()
    operation = Operation(*[ServiceError()] * 9, time=time, call_seconds=30)

    with pytest.raises(ServiceError):
        call(time.policy(max_attempts=9, deadline_seconds=70), operation)

    assert operation.calls == 3


@given(
    call_seconds=st.floats(0, 60),
    backoff_seconds=st.floats(0, 30),
    max_attempts=st.integers(1, 6),
    asked_seconds=st.floats(0, 30),
)
def test_no_call_takes_longer_than_the_worst_case(
    call_seconds: float, backoff_seconds: float, max_attempts: int, asked_seconds: float
) -> None:
    """What a caller with a lease counts on, for every combination of slow calls and long waits."""
    time = Time()
    policy = time.policy(max_attempts=max_attempts, backoff_seconds=backoff_seconds, deadline_seconds=100)
    operation = Operation(
        *[ServiceError(retry_after_seconds=asked_seconds) for _ in range(10)], time=time, call_seconds=call_seconds
    )

    with pytest.raises(ServiceError):
        call(policy, operation)

    assert time.now_seconds - 1000 <= policy.worst_case_seconds(call_seconds) + 1e-6


def test_a_stop_during_a_call_ends_the_tries() -> None:
    """The call's error is raised, and no wait begins."""
    time = Time()
    stop = asyncio.Event()
    calls: list[int] = []

    async def operation() -> None:
        calls.append(1)
        stop.set()
        raise ServiceError

    with pytest.raises(ServiceError):
        call(time.policy(), operation, stop=stop)

    assert len(calls) == 1
    assert time.waits == []


def test_a_stop_during_a_wait_raises_the_last_exception_without_another_call() -> None:
    """Whoever asked for the end does not get one more call."""
    time = Time(stop_during_wait=2)
    operation = Operation(ServiceError("first"), ServiceError("second"), ServiceError("third"))

    with pytest.raises(ServiceError, match="second"):
        call(time.policy(), operation, stop=asyncio.Event())

    assert operation.calls == 2


def test_the_first_call_is_made_even_when_stopped() -> None:
    """There would be nothing to return or to raise."""
    stop = asyncio.Event()
    stop.set()
    operation = Operation(ServiceError("only"))

    with pytest.raises(ServiceError, match="only"):
        call(Time().policy(), operation, stop=stop)

    assert operation.calls == 1


def test_a_real_wait_is_cut_short_by_the_stop() -> None:
    """The real clock and sleep: a stop that comes meanwhile ends a wait of a minute at once."""
    stop = asyncio.Event()
    policy = RetryPolicy(backoff=constant(seconds=60), is_transient=is_transient)
    started = time.monotonic()

    with pytest.raises(ServiceError):
        call(
            policy,
            Operation(ServiceError()),
            stop=stop,
            on_wait=lambda _error, _seconds: asyncio.get_running_loop().call_later(0.02, stop.set),
        )

    assert time.monotonic() - started < 10


def test_a_real_wait_lasts_as_long_as_it_says() -> None:
    """With a stop that nobody sets, and without one."""
    for stop in (asyncio.Event(), None):
        started = time.monotonic()
        asyncio.run(wait(0.02, stop))
        assert time.monotonic() - started >= 0.019


def test_the_caller_hears_of_each_wait_before_it_begins() -> None:
    """Once for each wait, with the error and the seconds, and never after the last failure."""
    time = Time()
    heard: list[tuple[str, float, int]] = []

    with pytest.raises(ServiceError):
        call(
            time.policy(backoff_seconds=2),
            Operation(ServiceError("a"), ServiceError("b", retry_after_seconds=5), ServiceError("c")),
            on_wait=lambda error, seconds: heard.append((str(error), seconds, len(time.waits))),
        )

    assert heard == [("a", 2, 0), ("b", 5, 1)]


def test_the_functions_of_the_policy_are_asked_once_for_each_failure() -> None:
    """``backoff`` asks for the end on the last failure, too; nothing is computed twice."""
    time = Time()
    asked: list[Exception] = []

    def transient(error: Exception) -> bool:
        asked.append(error)
        return True

    policy = RetryPolicy(is_transient=transient, clock=time.clock, sleep=time.sleep)
    with pytest.raises(ServiceError):
        call(policy, Operation(*[ServiceError()] * 5))

    assert len(asked) == 3


def test_what_is_no_exception_passes_through() -> None:
    """Ctrl-C is not an error of the service."""
    calls: list[int] = []

    async def operation() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(Time().policy(), operation)

    assert len(calls) == 1


def test_a_policy_that_could_not_end_is_refused() -> None:
    """The loop underneath would take 0 attempts for no limit."""
    with pytest.raises(ValueError, match="max_attempts"):
        RetryPolicy(max_attempts=0, is_transient=is_transient)
    with pytest.raises(ValueError, match="deadline_seconds"):
        RetryPolicy(deadline_seconds=float("nan"), is_transient=is_transient)


def test_the_worst_case_is_a_last_call_that_starts_just_before_the_deadline() -> None:
    """100 s of tries and a call of 30 s fit into a lease of five minutes."""
    assert RetryPolicy(is_transient=is_transient).worst_case_seconds(30) == 130
    assert RetryPolicy(is_transient=is_transient, max_attempts=1).worst_case_seconds(30) == 30


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("120", 120),
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
        ("soon", None),
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
def test_no_retry_after_breaks_the_caller(value: str) -> None:
    """Whatever a server writes there, the answer is nothing or between now and a day."""
    seconds = parse_retry_after(value, now=NOW)

    assert seconds is None or 0 <= seconds <= 86_400


@given(st.integers(0, 86_000))
def test_a_date_counts_from_the_given_now(seconds: int) -> None:
    """A date so many seconds ahead means so many seconds."""
    value = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)

    assert parse_retry_after(value, now=NOW) == seconds


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
