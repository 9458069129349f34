"""The portal stage of a delivery: as many calls as there are slots; a slot that is free claims the next event.

Several processes share what there is, since each claims only what it begins; and a hide that comes in meanwhile is
next, not behind a hundred others. While the database is used the calls under way stand still: it is a few milliseconds.
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
"""Calls at once: at 200 ms an answer they stay within Dataverse's 6,000 requests in 5 minutes."""
BREAKER_FAILURES = 5
"""After this number of exhausted events in a row the endpoint counts as dead for this run."""
LONGEST_PAUSE_SECONDS = 600.0
"""A Retry-After up to this is slept by the stage; a longer one ends it."""


class PortalStage:
    """Delivers the due events until none is left, the deadline is reached, or the portal is out of order."""

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
        on_progress: Callable[[int], None] | None = None,
        counts: PortalCounts,
    ) -> None:
        """``today`` is asked before each claim. None: the day cannot be believed, so only hides are pushed."""
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
        """When the next call may begin: after the wait that the portal asked for."""
        self._deadline_at = 0.0
        self._exhausted_in_a_row = 0
        self._ended: StageStop | None = None
        """Why nothing more is begun."""
        self._crash: BaseException | None = None
        """Why nothing more is begun and ``run`` raises, once the calls under way have ended."""
        self._unsettled: list[Push] = []
        """Pushes that ended after the database went away."""

    def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Deliver; return why the stage ended early, or None: nothing is left to do.

        Raises StoppedBySignalError after a signal, and what a push has raised that nobody foresaw: its outcome is
        unknown, so the event keeps its lease. What ends is settled first, one by one, also within a signal's grace.
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
        """Claim and begin what has a slot; return whether there may be more, once a wait is over."""
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
        try:
            self._service.settle(push, self._counts)
        except psycopg.Error as error:
            self._crash = self._crash or error
            self._unsettled += [push] if is_lost(error) else []
            return
        if self._on_progress is not None:
            self._on_progress(self._counts.delivered + self._counts.failed)
        self._begin_at = max(self._begin_at, time.monotonic() + push.asked_seconds)
        if self._ended or self._stop.is_set():
            return
        try:
            self._ended = self._judge(push, self._deadline_at)
        except psycopg.Error as error:  # the other calls in flight are still settled
            self._crash = self._crash or error

    def _judge(self, push: Push, deadline_at: float) -> StageStop | None:
        """Decide from one outcome whether the stage goes on."""
        error, seconds = push.error, push.asked_seconds
        if push.outcome is PushOutcome.NOT_TRIED:
            if time.monotonic() >= deadline_at:
                return self._end(StageEnd.DEADLINE, "the time for deliveries is over; the rest stays pending")
            stood_still = "the lease is shorter than a push can take, or this process stood still; the rest waits"
            return self._end(StageEnd.LEASE, stood_still)
        if error is None or (push.outcome is PushOutcome.BLOCKED and error.attempts):
            self._exhausted_in_a_row = 0  # the portal was called, and does its work
        if error is None or push.outcome is PushOutcome.BLOCKED:
            return None
        cause = error.cause
        if push.outcome is PushOutcome.REFUSED:
            reason = f"{cause}; certjob stopped pushing, and all events stay queued"
            return self._end(
                StageEnd.KEY_REFUSED if cause.status in {401, 403} else StageEnd.MISCONFIGURED, reason, cause
            )
        self._exhausted_in_a_row += push.outcome is PushOutcome.FAILED
        if self._exhausted_in_a_row >= BREAKER_FAILURES:
            reason = f"{BREAKER_FAILURES} pushes in a row failed (last: {cause}); the rest stays pending"
            return self._end(StageEnd.BREAKER, reason, cause)
        if seconds > self._longest_pause_seconds or time.monotonic() + seconds >= deadline_at:
            asked = f"the portal asked to wait {seconds:,.0f} s; the rest stays pending"
            return self._end(StageEnd.RETRY_AFTER, asked, cause)
        return None

    def _end(self, end: StageEnd, reason: str, cause: PortalCallError | None = None) -> StageStop:
        """Give the open hides the reason of an early end."""
        refusal = cause if isinstance(cause, PortalStageError) else None
        stopped = StageStop(stage="portal", code=end, reason=reason, fault=str(refusal) if refusal else "")
        self._service.record_stage_end(
            str(stopped),
            end=end,
            correlation_id=cause.correlation_id if cause else None,
        )
        return stopped
