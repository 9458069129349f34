"""The portal stage of a night: threads make the calls, one thread owns the database and decides when to stop."""

import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager

from certjob.errors import (
    DynamicsSyncException,
    FailureCode,
    PermanentPortalError,
    PortalStageError,
    TransientPortalError,
)
from certjob.outbox.claims import ANY_ATTEMPTS, Lease, StageStop
from certjob.outbox.retry import RetryPolicy
from certjob.portal.push import CALL_DEADLINE_SECONDS, PortalEvent, PortalTarget, Push, asked_to_wait, refusal_code
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.portal.threads import PortalThreads, Task
from certjob.stopping import StopFlag

BREAKER_FAILURES = 5
"""So many exhausted events in a row, and the endpoint counts as dead for this run."""
LONGEST_PAUSE_SECONDS = 600.0
"""A Retry-After up to this is slept by the stage; a longer one ends it."""
MOST_PAUSES_IN_A_ROW = 20
"""A portal that answers nothing but Retry-After so often ends the stage, too: it is asked at most so often in a run."""
MOST_CALLS_IN_VAIN = 100
"""A dead endpoint gets at most so many requests in one run, whatever kinds of failure they are."""
_GRACE_SECONDS = 6.5
"""After a signal, calls in flight may take so long to end; a later one keeps its lease."""
LOOK_AGAIN_SECONDS = 1.0
"""What is claimed and waits for its turn is looked at so often: it may not be wanted any more."""


class PortalStage:
    """Delivers the due events until none is left, the deadline comes, or the portal turns out to be out of order."""

    def __init__(
        self,
        service: PortalSyncService,
        *,
        make_target: Callable[[], AbstractContextManager[PortalTarget]],
        policy: RetryPolicy,
        concurrency: int,
        calls_per_second: float,
        stop: StopFlag,
        on_progress: Callable[[int], None] | None = None,
        queue_more: Callable[[], bool] | None = None,
    ) -> None:
        """``make_target`` is called once in each thread: an HTTP client is not shared.

        ``queue_more`` is called when nothing more is due; False = it has queued nothing, and will not.
        """
        self._service = service
        self._policy = policy
        self._concurrency = concurrency
        self._stop = stop
        self._on_progress = on_progress
        self._queue_more = queue_more
        self._threads = PortalThreads(
            make_target=make_target, policy=policy, number=concurrency, calls_per_second=calls_per_second
        )
        self._ready: deque[Task] = deque()
        self._looked_at = 0.0
        self._exhausted: list[int] = []
        """The rounds of those pushes in a row that failed in all their tries."""
        self._attempts_below = ANY_ATTEMPTS
        self._left_out: tuple[str, DynamicsSyncException] | None = None
        self._calls_in_vain = 0
        self._pauses_in_a_row = 0
        self._pause_until = 0.0
        self._deadline_at = 0.0
        self._stopped: StageStop | None = None
        self._refusal: FailureCode | None = None
        """Why nobody can be pushed, where that ended the stage."""
        self._crash: BaseException | None = None
        self.counts = PortalCounts()

    def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Deliver; return why the stage ended early, or None. Raises StoppedBySignalError after a signal."""
        self._deadline_at = time.monotonic() + deadline_seconds
        try:
            while self._crash is None and self._refill():
                self._threads.start(self._threads.in_flight + len(self._ready))
                self._dispatch()
                self._collect()
        finally:
            try:
                self._wind_down()
            finally:  # also when the database is gone
                self._threads.end()
        self._service.record_late(self._stop, self.counts)
        if self._left_out is not None:
            self._end("breaker", *self._left_out)
        if self._stopped is not None:
            stopped = self._stopped
            failure = self._refusal or FailureCode(stopped.code)
            self._service.record_stage_end(str(stopped), code=failure, correlation_id=stopped.correlation_id)
        if self._crash is not None:
            raise self._crash
        self._stop.check()
        return self._stopped

    def _refill(self) -> bool:
        """Claim more if there is room; whether anything is left to do."""
        now = time.monotonic()
        if self._stop.is_set():
            return False
        if self._stopped is None and now >= self._deadline_at:
            self._threads.halt.set()
            if not self._is_anything_left():
                return self._threads.in_flight > 0
            self._end("deadline", "the time for deliveries is over; the rest stays pending")
        if self._stopped:
            self._release_ready()
            return self._threads.in_flight > 0
        if now < self._pause_until:
            self._release_ready()  # no lease is held over a long pause
            if not self._threads.in_flight:
                self._stop.wait(min(self._pause_until - now, 1.0))
            return True
        if len(self._ready) < self._concurrency:
            self._claim()
        return bool(self._ready or self._threads.in_flight or self._queue_more)

    def _claim(self) -> None:
        """Claim what is due; when nothing is, let more be queued."""
        events, lease = self._claim_due(self._threads.pace.claim_limit)
        self._looked_at = time.monotonic()
        if not events and self._queue_more is not None:
            if not self._queue_more():
                self._queue_more = None
            events, lease = self._claim_due(self._threads.pace.claim_limit)
        self._ready.extend(Task(event=event, lease=lease) for event in events)
        if events and not lease.fits(self._policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):
            self._end("lease", "the lease is shorter than a push can take, or this process stood still; the rest waits")
            self._release_ready()

    def _claim_due(self, limit: int) -> tuple[list[PortalEvent], Lease]:
        return self._service.claim(limit=limit, attempts_below=self._attempts_below)

    def _drop_stale(self) -> None:
        """Give back what is claimed and not wanted any more: a newer wish goes first, not the older one's call."""
        self._looked_at = time.monotonic()
        current = self._service.find_current([task.event for task in self._ready])
        stale = [task.event for task in self._ready if task.event.id not in current]
        if stale:
            self._ready = deque(task for task in self._ready if task.event.id in current)
            self._service.release(stale)

    def _is_anything_left(self) -> bool:
        """Whether a stage whose time is over leaves anything undone."""
        if not self._ready and self._queue_more is None:
            events, lease = self._claim_due(1)
            self._ready.extend(Task(event=event, lease=lease) for event in events)
        return bool(self._ready or self._queue_more)

    def _dispatch(self) -> None:
        if time.monotonic() - self._looked_at > LOOK_AGAIN_SECONDS:
            self._recall()
            if self._ready:
                self._drop_stale()
        # After a pause, one call tries.
        at_once = 1 if self._pauses_in_a_row else self._concurrency + self._threads.pace.ahead
        # Each push that is in flight may make all its calls in vain.
        at_once = min(at_once, (MOST_CALLS_IN_VAIN - self._calls_in_vain) // self._policy.max_attempts)
        if at_once < 1 and not self._threads.in_flight and self._ready:
            self._end("breaker", f"{self._calls_in_vain} calls in a row were in vain; the rest stays pending")
        while self._ready and self._threads.in_flight < at_once:
            self._threads.hand_over(self._ready.popleft())

    def _collect(self) -> None:
        """Wait for an answer, take all that are there, settle them together."""
        if not self._threads.in_flight:
            return
        pushes, crashes = self._threads.collect(stop=self._stop)
        if pushes:
            went_well = not crashes and all(push.begun and push.error is None for push in pushes)
            if went_well and not self._stop.is_set():
                self._dispatch()  # nothing there that could end or hold the stage: the threads go on meanwhile
            self._service.settle(pushes, self.counts)
            for push in pushes:
                self._judge(push)
            if self._on_progress:
                self._on_progress(self.counts.delivered + self.counts.failed)
        for crash in crashes:
            self._end("crash", f"unforeseen {type(crash.error).__name__}; the rest stays pending")
            self._crash = self._crash or crash.error

    def _judge(self, push: Push) -> None:
        """Decide from one outcome whether the stage goes on."""
        error = push.error
        if error is not None and not isinstance(error.cause, PermanentPortalError):
            self._recall()
            self._calls_in_vain += error.attempts
        elif push.begun and (error is None or error.attempts):
            self._calls_in_vain = 0
        if not push.begun or (error is not None and not error.attempts):
            return  # no call was made, so nothing was learnt about the portal
        if error is not None and (wait := asked_to_wait(error)) is not None:
            self._pause(wait, error)
            return
        self._pauses_in_a_row = 0
        if error is None:
            self._exhausted.clear()
        elif isinstance(error.cause, PortalStageError):
            reason = f"{error.cause}; nothing was pushed to anybody after that, all events stay queued"
            self._end(refusal_code(error.cause), reason, error)
        elif isinstance(error.cause, TransientPortalError):
            self._count_exhausted(push.event.attempts, error)
        else:
            self._exhausted.clear()

    def _count_exhausted(self, rounds: int, error: DynamicsSyncException) -> None:
        """End the stage when so many pushes in a row have failed, unless it may be they that are out of order.

        If all of them have failed in earlier rounds, too, only what was tried less often goes on, and its first failure
        ends the stage. Otherwise hides that never succeed, which are due again and again, would keep every show from
        its turn for ever.
        """
        if rounds > self._attempts_below:
            return  # was in flight when such as it were left out
        self._exhausted.append(rounds)
        if len(self._exhausted) < BREAKER_FAILURES:
            return
        reason = f"{BREAKER_FAILURES} pushes in a row failed (last: {error.cause}); the rest stays pending"
        attempts_below = min(self._exhausted) - 1
        if attempts_below == 0 or self._left_out is not None:
            self._end("breaker", reason, error)
            return
        self._left_out, self._attempts_below = (reason, error), attempts_below
        self._exhausted.pop()
        self._release_ready()

    def _pause(self, seconds: float, error: DynamicsSyncException) -> None:
        now = time.monotonic()
        self._pauses_in_a_row += now >= self._pause_until  # several answers at once are one
        self._pause_until = max(self._pause_until, now + seconds)
        if self._pauses_in_a_row > MOST_PAUSES_IN_A_ROW:
            reason = f"the portal asked to wait {MOST_PAUSES_IN_A_ROW} times and more in a row; the rest stays pending"
            self._end("retry_after", reason, error)
        elif seconds > LONGEST_PAUSE_SECONDS or self._pause_until >= self._deadline_at:
            self._end("retry_after", f"the portal asked to wait {seconds:,.0f} s; the rest stays pending", error)

    def _end(self, code: str, reason: str, error: DynamicsSyncException | None = None) -> None:
        if self._stopped is None:
            correlation_id = error.cause.correlation_id if error else None
            self._stopped = StageStop(stage="portal", code=code, reason=reason, correlation_id=correlation_id)
            self._refusal = error.cause.code if error and isinstance(error.cause, PortalStageError) else None
            self._threads.halt.set()

    def _wind_down(self) -> None:
        """After the loop, or an error in it: nothing more begins, what ends in time is settled, the rest released."""
        self._threads.halt.set()
        until = time.monotonic() + _GRACE_SECONDS
        self._release_ready()
        while self._threads.in_flight and time.monotonic() < until:
            self._collect()

    def _recall(self) -> None:
        """Take back what no thread has taken up yet, to the head of the line."""
        self._ready.extendleft(reversed(self._threads.take_back()))

    def _release_ready(self) -> None:
        self._recall()
        if self._ready:
            self._service.release([task.event for task in self._ready])
            self._ready.clear()
