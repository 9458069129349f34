"""The portal stage of a delivery: four pushes at a time, each settled as it ends, and its slot filled again.

It claims only as many events as it can start, so several processes share the work and a new hide is pushed next. Calls
in flight pause while the stage uses the database, which takes a few milliseconds.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

import psycopg

from certjob.database import is_lost
from certjob.errors import StageEnd
from certjob.outbox.calls import Calls
from certjob.outbox.claims import Answer, StageStop
from certjob.outbox.retry import RetryPolicy
from certjob.portal.push import PORTAL_POLICY, PortalEvent, Push, PushOutcome, push_once
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag

if TYPE_CHECKING:
    from certjob.portal.hlf_dynamics import HLFDynamicsSyncService  # httpx: 50 ms

CONCURRENCY = 4
"""Calls at once. At 200 ms a call they stay within Dataverse's 6,000 requests in 5 minutes."""
BREAKER_FAILURES = 5
"""After this number of failed events in a row, the stage ends because the portal is down."""
LONGEST_PAUSE_SECONDS = 600.0
"""The longest Retry-After for which the stage waits. A longer one ends it."""


@dataclass(slots=True, kw_only=True)
class StageState:
    """The consequence of the pushes so far for the next ones."""

    deadline_at: float
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS
    begin_at: float = 0.0
    """When the next call may start, after the wait that the portal asked for."""
    failures_in_a_row: int = 0
    ended: StageStop | None = None
    """Why no more calls are started."""
    crash: BaseException | None = None
    """The error to raise after all calls in flight have ended."""
    unsettled: list[Push] = field(default_factory=list)
    """Pushes that ended after the connection to the database was lost."""


def deliver_pushes(
    service: PortalSyncService,
    *,
    calls: Calls,
    stop: StopFlag,
    make_portal: "Callable[[], HLFDynamicsSyncService]",
    today: Callable[[], date | None],
    counts: PortalCounts,
    deadline_seconds: float,
    policy: RetryPolicy = PORTAL_POLICY,
    concurrency: int = CONCURRENCY,
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
    on_progress: Callable[[int], None] = lambda _done: None,
) -> StageStop | None:
    """Deliver the due events, and return why the stage ended early, or None.

    ``today`` is called before each claim. It returns None if the day is not reliable: then only hides go out. Raises
    StoppedBySignalError after a signal, and any unexpected error of a push after the others have ended. The outcome of
    that push is unknown, so its event keeps the lease.
    """
    state = StageState(deadline_at=time.monotonic() + deadline_seconds, longest_pause_seconds=longest_pause_seconds)
    flying: set[asyncio.Task[Push]] = set()
    service.take_back()
    with settled_again(service, counts, state), calls.opened(make_portal()) as portal:
        while True:
            # Claim an event for each free slot, and begin its push.
            may_begin = not (stop.is_set() or state.ended or state.crash)
            pause_seconds = state.begin_at - time.monotonic()
            claimed, landed = list[PortalEvent](), list[Push]()
            if may_begin and pause_seconds <= 0 and len(flying) < concurrency:
                claimed = _claim(service, state, concurrency - len(flying), today=today)
            is_too_late = stop.is_set() or time.monotonic() >= state.deadline_at
            for event in claimed:
                if is_too_late:
                    landed.append(Push(event=event, outcome=PushOutcome.NOT_TRIED))
                else:
                    call = push_once(event, portal=portal, policy=policy, stopped=calls.stopped)
                    flying.add(calls.begin(call))

            # Wait until a push has ended, or until the next one may begin.
            if flying and not landed:
                landed = _land(calls.wait_for_one(flying), flying, state)
            elif may_begin and pause_seconds > 0:
                stop.sleep(pause_seconds)
            elif not claimed:
                break

            # Settle each push that has ended, and judge whether the stage goes on. After an error the rest is settled.
            for push in landed:
                if settle(service, push, counts, state) and not stop.is_set():
                    judge(service, push, state)
            on_progress(counts.delivered + counts.failed)
    return finish(state, stop=stop)


def _claim(
    service: PortalSyncService, state: StageState, limit: int, *, today: Callable[[], date | None]
) -> list[PortalEvent]:
    try:
        return service.claim(limit, today=today())
    except psycopg.Error as error:
        state.crash = error
        return []


def _land(ended: "Set[asyncio.Task[Push]]", flying: "set[asyncio.Task[Push]]", state: StageState) -> list[Push]:
    """Take ended pushes out of those in flight, and return their outcomes. An unexpected error has none."""
    flying -= ended
    errors = [error for task in ended if (error := task.exception()) is not None]
    state.crash = state.crash or next(iter(errors), None)
    return [task.result() for task in ended if task.exception() is None]


def settle(service: PortalSyncService, push: Push, counts: PortalCounts, state: StageState) -> Answer | None:
    """Store one outcome; return None after an error, which the stage raises at its end."""
    try:
        return service.settle(push, counts)
    except psycopg.Error as error:
        state.crash = state.crash or error
        state.unsettled += [push] if is_lost(error) else []
        return None


def judge(service: PortalSyncService, push: Push, state: StageState) -> None:
    """Decide from one outcome when the next call may start, and whether the stage ends.

    The reason of an end is stored with the open hides.
    """
    state.begin_at = max(state.begin_at, time.monotonic() + push.asked_seconds)
    if push.is_answered:
        state.failures_in_a_row = 0
    state.failures_in_a_row += push.outcome is PushOutcome.FAILED
    why = _why_it_ends(push, state)
    if why is None or state.ended is not None:
        return
    code, reason = why
    cause = push.error.cause if push.error is not None else None
    state.ended = StageStop(
        stage="portal",
        code=code,
        reason=reason,
        fault=str(cause) if push.outcome is PushOutcome.REJECTED else "",
    )
    try:
        service.record_stage_end(str(state.ended), end=code, correlation_id=cause.correlation_id if cause else None)
    except psycopg.Error as error:
        state.crash = state.crash or error


def _why_it_ends(push: Push, state: StageState) -> tuple[StageEnd, str] | None:
    is_past_deadline = time.monotonic() + push.asked_seconds >= state.deadline_at
    if push.outcome is PushOutcome.NOT_TRIED:
        if is_past_deadline:
            return StageEnd.DEADLINE, "the time for deliveries is over; the rest stays pending"
        unfit = "a push can take longer than its lease, or this process stood still; the rest stays pending"
        return StageEnd.LEASE, unfit
    if push.error is None or push.outcome is PushOutcome.BLOCKED:
        return None
    cause = push.error.cause
    if push.outcome is PushOutcome.REJECTED:
        code = StageEnd.KEY_REFUSED if cause.status in {401, 403} else StageEnd.MISCONFIGURED
        return code, f"{cause}; no more pushes were made, and all events stay queued"
    if state.failures_in_a_row >= BREAKER_FAILURES:
        return (
            StageEnd.BREAKER,
            f"{BREAKER_FAILURES} pushes in a row failed (last: {cause}); the rest stays pending",
        )
    if push.asked_seconds > state.longest_pause_seconds or is_past_deadline:
        return StageEnd.RETRY_AFTER, f"the portal asked to wait {push.asked_seconds:,.0f} s; the rest stays pending"
    return None


@contextmanager
def settled_again(service: PortalSyncService, counts: PortalCounts, state: StageState) -> Iterator[None]:
    """At the end of the block, also after a signal, settle the pushes that a lost connection has left."""
    try:
        yield
    finally:
        service.settle_again(state.unsettled, counts)


def finish(state: StageState, *, stop: StopFlag) -> StageStop | None:
    """Return why the stage ended early, or raise its error."""
    stop.check()
    if state.crash is not None:
        raise state.crash
    return state.ended
