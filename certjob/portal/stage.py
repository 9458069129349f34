"""The portal stage of a delivery: one coordinator claims what can begin now, lets it be pushed, settles and judges it.

The walk: ``_begin_more`` (rate, claim, begin) → ``Pusher.push`` as a task → ``_landed`` → ``_settle`` (judge, settle).
Calls are tasks of the event loop; what touches the database goes through its one thread.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from certjob.errors import DynamicsSyncException, FailureCode, PermanentPortalError, PortalStageError
from certjob.outbox.claims import CRASH, Answer, Lease, StageStop
from certjob.outbox.loop import DatabaseThread
from certjob.outbox.retry import RetryPolicy, wait
from certjob.portal.push import (
    CALL_DEADLINE_SECONDS,
    MakeTarget,
    PortalEvent,
    Push,
    Pusher,
    asked_to_wait,
    refusal_code,
)
from certjob.portal.rate import RateLimiter
from certjob.portal.sync import SETTLE_LOCK_TIMEOUT_MS, PortalCounts, PortalSyncService

BREAKER_FAILURES = 5
"""So many exhausted events in a row, and the endpoint counts as dead for this run."""
LONGEST_PAUSE_SECONDS = 600.0
"""A Retry-After up to this is slept by the stage; a longer one ends it."""
MOST_FAILED_CALLS = 100
"""A dead endpoint gets at most so many requests in one run, whatever kinds of failure they are."""
GRACE_SECONDS = 6.5
"""After a signal, calls in flight may take so long to end; a later one keeps its lease."""
LOOK_AGAIN_SECONDS = 1.0
"""While calls are in flight, more is looked for so often; what was claimed so long ago may be out of date."""
_LOCK_TIMEOUT_AFTER_SIGNAL_MS = 100
_TIME_IS_OVER = "the time for deliveries is over; the rest stays pending"

Claim = Callable[[int], list[tuple[PortalEvent, Lease]]]
"""Claims at most so many events, each with its lease."""


class PortalStage:
    """Delivers the due events until none is left, the deadline comes, or the portal turns out to be out of order."""

    def __init__(
        self,
        service: PortalSyncService,
        *,
        database: DatabaseThread,
        stopped: asyncio.Event,
        make_target: MakeTarget,
        policy: RetryPolicy,
        concurrency: int = 1,
        calls_per_second: float = 0.0,
        claim: Claim | None = None,
        longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
        on_progress: Callable[[int], None] | None = None,
        on_settled: Callable[[Push, Answer], None] | None = None,
        queue_more: Callable[[], bool] | None = None,
        counts: PortalCounts | None = None,
    ) -> None:
        """``make_target`` is called once, when there is something to push.

        ``claim`` takes the place of claiming whatever is due. ``queue_more`` is called when nothing more is due; False
        = it has queued nothing, and will not. It, ``claim`` and ``on_progress`` are called in the database's thread.
        """
        self._service = service
        self._database = database
        self._stop = stopped
        self._make_target = make_target
        self._policy = policy
        self._concurrency = concurrency
        self._claim_due: Claim = claim or service.claim
        self._longest_pause_seconds = longest_pause_seconds
        self._on_progress = on_progress
        self._on_settled = on_settled
        self._queue_more = queue_more
        self._rate = RateLimiter(calls_per_second=calls_per_second)
        self._halt = asyncio.Event()
        """Begin nothing more, retry nothing more."""
        self._watch: asyncio.Future[None] | None = None
        """Ends when the process is to stop."""
        self._clients = AsyncExitStack()
        self._pusher: Pusher | None = None
        self._spare: deque[tuple[PortalEvent, Lease]] = deque()
        """Claimed, and begun as soon as a slot is free, while the outcome of the push before is settled."""
        self._flying: dict[asyncio.Task[Push], float] = {}
        """Each with when it began."""
        self._are_quick = False
        """Whether the latest push took less than a second."""
        self._exhausted_in_a_row = 0
        self._failed_calls_in_a_row = 0
        self._is_cautious = False
        """After a pause, one call tries."""
        self._deadline_at = 0.0
        self._stopped: StageStop | None = None
        self._failure: FailureCode | None = None
        self._crash: BaseException | None = None
        self.counts = counts if counts is not None else PortalCounts()

    async def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Deliver; return why the stage ended early, or None: nothing is left to do, or a signal came."""
        self._deadline_at = time.monotonic() + deadline_seconds
        grace_seconds = GRACE_SECONDS
        self._watch = asyncio.ensure_future(self._halt_with_the_process())
        await self._database.run(self._service.take_back)
        async with self._clients:
            try:
                while await self._begin_more():
                    await self._settle(await self._landed(LOOK_AGAIN_SECONDS))
            except asyncio.CancelledError:
                grace_seconds = 0.0  # it is over, or a second signal has come
                raise
            finally:
                self._watch.cancel()
                await self._wind_down(grace_seconds)
        if self._stopped is not None:
            await self._database.run(partial(self._record_end, self._stopped), settles=True)
        if self._crash is not None:
            raise self._crash
        return self._stopped

    async def _halt_with_the_process(self) -> None:
        await self._stop.wait()
        self._halt.set()

    async def _begin_more(self) -> bool:
        """Claim what can begin now, and begin it; whether there is anything left to wait for."""
        if self._stop.is_set():
            return False
        if time.monotonic() >= self._deadline_at and not self._halt.is_set():
            await self._end_at_deadline()
        if self._slots() < 1 and not self._flying:
            self._end("breaker", f"{self._failed_calls_in_a_row} calls in a row failed; the rest stays pending")
        if self._halt.is_set() or self._rate.seconds_left() > 0:
            await self._give_back_spare()  # no lease is held over a long wait
            return bool(self._flying) or not self._halt.is_set()
        await self._give_back_spare(waiting_for_seconds=LOOK_AGAIN_SECONDS)
        wanted = self._slots() - len(self._flying) - len(self._spare)
        if self._rate.is_limited:
            wanted = min(wanted, 1)
        elif self._are_quick:
            wanted += self._slots()  # one spare set, so that a slot that is freed waits for no claim
        if wanted > 0:
            await self._claim(wanted)
        await self._begin_spare()
        return bool(self._flying or self._spare) or self._queue_more is not None

    def _slots(self) -> int:
        """How many pushes may be in flight; each of them may make all its calls in vain."""
        left = (MOST_FAILED_CALLS - self._failed_calls_in_a_row) // self._policy.max_attempts
        return min(1 if self._is_cautious else self._concurrency, left)

    async def _claim(self, limit: int) -> None:
        """Claim what is due; when nothing is, let more be queued."""
        claimed = await self._database.run(partial(self._claim_due, limit))
        if not claimed and self._queue_more is not None:
            if not await self._database.run(self._queue_more):
                self._queue_more = None
            claimed = await self._database.run(partial(self._claim_due, limit))
        self._spare.extend(claimed)
        if claimed and not claimed[0][1].fits(self._policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):
            self._end("lease", "the lease is shorter than a push can take, or this process stood still; the rest waits")

    async def _begin_spare(self) -> None:
        """Begin what is claimed, as far as slots are free."""
        while self._spare and len(self._flying) < self._slots() and not self._halt.is_set():
            if self._pusher is None:
                target = await self._clients.enter_async_context(self._make_target())
                self._pusher = Pusher(target=target, policy=self._policy, rate=self._rate, halt=self._halt)
            event, lease = self._spare.popleft()
            self._rate.begin()
            self._flying[asyncio.ensure_future(self._pusher.push(event, lease))] = time.monotonic()

    async def _landed(self, timeout_seconds: float) -> list[Push]:
        """Wait for pushes to end, or for the turn of the next one; return what became of those that have ended."""
        for seconds in (self._rate.seconds_left(), self._deadline_at - time.monotonic()):
            timeout_seconds = min(seconds, timeout_seconds) if seconds > 0 else timeout_seconds
        if not self._flying:
            await wait(timeout_seconds, self._halt)
            return []
        # A signal ends the wait, too: what is left of the grace counts from the signal, not from the next look.
        waiting: set[asyncio.Future[Any]] = set(self._flying)
        if self._watch is not None and not self._watch.done():
            waiting.add(self._watch)
        await asyncio.wait(waiting, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        pushes: list[Push] = []
        for task in [task for task in self._flying if task.done()]:
            self._are_quick = time.monotonic() - self._flying.pop(task) < LOOK_AGAIN_SECONDS
            if task.cancelled():  # nobody knows how far its call has come: the event keeps its lease
                continue
            crash = task.exception()
            if crash is None:
                pushes.append(task.result())
            else:
                self._end(CRASH, f"unforeseen {type(crash).__name__}; the rest stays pending")
                self._crash = self._crash or crash
        return pushes

    async def _settle(self, pushes: list[Push]) -> None:
        """Judge all, begin what is spare, and settle each push alone: one that fails does not drop the others."""
        for push in pushes:
            self._judge(push)
        if pushes and self._rate.seconds_left() <= 0:
            await self._begin_spare()
        failed: Exception | None = None
        for push in pushes:
            try:
                answer = await self._database.run(partial(self._settle_one, push), settles=True)
                if push.error is not None and (seconds := asked_to_wait(push.error)) is not None:
                    self._rate.hold(
                        seconds
                    )  # the row's wait began with the settle: a claim before its end finds nothing
                if self._on_settled is not None:
                    self._on_settled(push, answer)
            except Exception as error:  # noqa: BLE001 - raised once all have had their turn
                failed = failed or error
        if failed is not None:
            raise failed

    def _settle_one(self, push: Push) -> Answer:
        """In the database's thread: write what became of one push."""
        after_signal = self._stop.is_set()
        lock_timeout_ms = _LOCK_TIMEOUT_AFTER_SIGNAL_MS if after_signal else SETTLE_LOCK_TIMEOUT_MS
        answer = self._service.settle(push, self.counts, lock_timeout_ms=lock_timeout_ms)
        if self._on_progress is not None and push.begun:
            self._on_progress(self.counts.delivered + self.counts.failed)
        return answer

    def _judge(self, push: Push) -> None:
        """Decide from one outcome whether the stage goes on."""
        error = push.error
        if error is None or isinstance(error.cause, PermanentPortalError):
            if push.begun and (error is None or error.attempts):  # a call was made, and the portal does its work
                self._failed_calls_in_a_row = self._exhausted_in_a_row = 0
                self._is_cautious = False
            return
        self._failed_calls_in_a_row += error.attempts
        seconds = asked_to_wait(error)
        if isinstance(error.cause, PortalStageError):
            reason = f"{error.cause}; nothing was pushed to anybody after that, all events stay queued"
            self._end(refusal_code(error.cause), reason, error)
        elif seconds is not None:
            self._is_cautious = True
            if seconds > self._longest_pause_seconds or time.monotonic() + seconds >= self._deadline_at:
                self._end("retry_after", f"the portal asked to wait {seconds:,.0f} s; the rest stays pending", error)
        elif push.begun:
            self._is_cautious = False
            self._exhausted_in_a_row += 1
            if self._exhausted_in_a_row >= BREAKER_FAILURES:
                reason = f"{BREAKER_FAILURES} pushes in a row failed (last: {error.cause}); the rest stays pending"
                self._end("breaker", reason, error)
        elif time.monotonic() >= self._deadline_at:  # its repeats were cut short
            self._end("deadline", _TIME_IS_OVER)

    def _end(self, code: str, reason: str, error: DynamicsSyncException | None = None) -> None:
        self._halt.set()
        if self._stopped is None:
            cause = error.cause if error is not None else None
            correlation_id = cause.correlation_id if cause is not None else None
            self._stopped = StageStop(stage="portal", code=code, reason=reason, correlation_id=correlation_id)
            self._failure = cause.code if isinstance(cause, PortalStageError) else FailureCode(code)

    async def _end_at_deadline(self) -> None:
        """Begin nothing more; it is an early end only if something is left."""
        if not self._spare and self._queue_more is None:
            await self._claim(1)
        self._halt.set()
        if self._spare or self._queue_more is not None:
            self._end("deadline", _TIME_IS_OVER)

    def _record_end(self, stopped: StageStop) -> None:
        code = self._failure or FailureCode.CRASH
        self._service.record_stage_end(str(stopped), code=code, correlation_id=stopped.correlation_id)

    async def _wind_down(self, grace_seconds: float) -> None:
        """After the loop, or an error in it: nothing more begins, what ends in time is settled, the rest released."""
        self._halt.set()
        until = time.monotonic() + grace_seconds
        try:
            await self._give_back_spare()
            while self._flying and (seconds := until - time.monotonic()) > 0:
                await self._settle(await self._landed(seconds))
        finally:
            for task in self._flying:
                task.cancel()
            await asyncio.gather(*self._flying, return_exceptions=True)

    async def _give_back_spare(self, *, waiting_for_seconds: float = 0.0) -> None:
        """Release what is claimed and not begun; with a time, only what has waited for so long."""
        while self._spare:
            event, lease = self._spare[0]
            if lease.clock() - lease.claimed_at < waiting_for_seconds:
                return
            self._spare.popleft()
            await self._database.run(partial(self._settle_one, Push(event=event, begun=False)), settles=True)
