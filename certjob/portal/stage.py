"""The portal stage of a delivery: makes several calls at once, and claims the next event when a call has ended.

It claims only as many events as it can start, so several processes share the work and a new hide is pushed next. Calls
in flight pause while the stage uses the database, which takes a few milliseconds.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import date
from typing import TYPE_CHECKING

import psycopg

from certjob.database import is_lost
from certjob.errors import PortalCallError, PortalStageError, StageEnd
from certjob.outbox.calls import Calls
from certjob.outbox.claims import StageStop
from certjob.outbox.retry import RetryPolicy
from certjob.portal.push import Push, PushOutcome, push_once
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


class PortalStage:
    """Delivers the due events until none is left, the deadline has passed, or the portal is out of order."""

    def __init__(
        self,
        service: PortalSyncService,
        *,
        calls: Calls,
        stop: StopFlag,
        make_portal: "Callable[[], HLFDynamicsSyncService]",
        policy: RetryPolicy,
        today: Callable[[], date | None],
        concurrency: int = CONCURRENCY,
        longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
        on_progress: Callable[[int], None] = lambda _done: None,
        counts: PortalCounts,
    ) -> None:
        """``today`` is called before each claim. It returns None if the day is not reliable: then only hides go out."""
        self._service = service
        self._calls = calls
        self._stop = stop
        self._make_portal = make_portal
        self._policy = policy
        self._today = today
        self._concurrency = concurrency
        self._longest_pause_seconds = longest_pause_seconds
        self._on_progress = on_progress
        self._counts = counts
        self._flying: set[asyncio.Task[Push]] = set()
        self._begin_at = 0.0
        """When the next call may start, after the wait that the portal asked for."""
        self._deadline_at = 0.0
        self._failures_in_a_row = 0
        self._ended: StageStop | None = None
        """Why no more calls are started."""
        self._crash: BaseException | None = None
        """The error that ``run`` raises after all calls in flight have ended."""
        self._unsettled: list[Push] = []
        """Pushes that ended after the connection to the database was lost."""

    def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Deliver, and return why the stage ended early, or None. Each push is settled as soon as it ends.

        Raises StoppedBySignalError after a signal, and any unexpected error of a push. The outcome of that push is
        unknown, so its event keeps the lease.
        """
        self._deadline_at = time.monotonic() + deadline_seconds
        self._service.take_back()
        with self._calls.opened(self._make_portal()) as portal:
            while self._begin_more(portal) or self._flying:
                if self._flying:
                    for task in self._calls.wait_for_one(self._flying):
                        self._land(task)
                else:
                    self._stop.sleep(self._begin_at - time.monotonic())
        if self._unsettled:
            self._service.settle_again(self._unsettled, self._counts)
        self._stop.check()
        if self._crash is not None:
            raise self._crash
        return self._ended

    def _begin_more(self, portal: "HLFDynamicsSyncService") -> bool:
        """Claim events and start their calls; return whether there may be more events, perhaps after a wait."""
        free = self._concurrency - len(self._flying)
        if self._stop.is_set() or self._ended or self._crash or free <= 0:
            return False
        if time.monotonic() < self._begin_at:
            return True
        try:
            claimed = self._service.claim(free, today=self._today())
        except psycopg.Error as error:
            self._crash = error
            return False
        is_over = time.monotonic() >= self._deadline_at
        for event, lease in claimed:
            if is_over or self._stop.is_set():
                self._settle(Push(event=event, outcome=PushOutcome.NOT_TRIED))
            else:
                push = push_once(event, lease, portal=portal, policy=self._policy, stopped=self._calls.stopped)
                self._flying.add(self._calls.begin(push))
        return bool(claimed)

    def _land(self, task: "asyncio.Task[Push]") -> None:
        self._flying.remove(task)
        if (crash := task.exception()) is not None:
            self._crash = self._crash or crash
        else:
            self._settle(task.result())

    def _settle(self, push: Push) -> None:
        """Settle one push and judge its outcome. After an error the other calls in flight are still settled."""
        try:
            self._service.settle(push, self._counts)
            self._on_progress(self._counts.delivered + self._counts.failed)
            self._begin_at = max(self._begin_at, time.monotonic() + push.asked_seconds)
            if not (self._ended or self._stop.is_set()):
                self._ended = self._judge(push)
        except psycopg.Error as error:
            self._crash = self._crash or error
            self._unsettled += [push] if is_lost(error) else []

    def _judge(self, push: Push) -> StageStop | None:
        """Decide from one outcome whether the stage ends."""
        error, seconds = push.error, push.asked_seconds
        if push.outcome is PushOutcome.NOT_TRIED:
            if time.monotonic() >= self._deadline_at:
                return self._end(StageEnd.DEADLINE, "the time for deliveries is over; the rest stays pending")
            unfit = "a push can take longer than its lease, or this process stood still; the rest stays pending"
            return self._end(StageEnd.LEASE, unfit)
        if error is None or (push.outcome is PushOutcome.BLOCKED and error.attempts):
            self._failures_in_a_row = 0  # the portal has answered a call
        if error is None or push.outcome is PushOutcome.BLOCKED:
            return None
        cause = error.cause
        if push.outcome is PushOutcome.REFUSED:
            end = StageEnd.KEY_REFUSED if cause.status in {401, 403} else StageEnd.MISCONFIGURED
            return self._end(end, f"{cause}; no more pushes were made, and all events stay queued", cause)
        self._failures_in_a_row += push.outcome is PushOutcome.FAILED
        if self._failures_in_a_row >= BREAKER_FAILURES:
            reason = f"{BREAKER_FAILURES} pushes in a row failed (last: {cause}); the rest stays pending"
            return self._end(StageEnd.BREAKER, reason, cause)
        if seconds > self._longest_pause_seconds or time.monotonic() + seconds >= self._deadline_at:
            asked = f"the portal asked to wait {seconds:,.0f} s; the rest stays pending"
            return self._end(StageEnd.RETRY_AFTER, asked, cause)
        return None

    def _end(self, end: StageEnd, reason: str, cause: PortalCallError | None = None) -> StageStop:
        """Store the reason of an early end with the open hides."""
        fault = str(cause) if isinstance(cause, PortalStageError) else ""
        stopped = StageStop(stage="portal", code=end, reason=reason, fault=fault)
        self._service.record_stage_end(str(stopped), end=end, correlation_id=cause.correlation_id if cause else None)
        return stopped
