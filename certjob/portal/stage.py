"""The portal stage of a delivery: one coordinator claims what can begin now, lets it be pushed, settles and judges it.

The walk: ``_begin_more`` (slots, rate, claim) → ``Pusher.push`` as a task → ``_land`` (judge) → ``_settle``.
A free slot is filled before the push that freed it is settled: the portal need not wait for the database.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from certjob.errors import FailureCode, PortalCallError, PortalStageError
from certjob.outbox.claims import Lease, StageStop
from certjob.outbox.loop import DatabaseThread
from certjob.outbox.retry import RetryPolicy, wait
from certjob.portal.push import CALL_DEADLINE_SECONDS, MakeTarget, PortalEvent, Push, Pusher, PushOutcome
from certjob.portal.rate import RateLimiter
from certjob.portal.sync import PortalCounts, PortalSyncService

BREAKER_FAILURES = 5
"""After this number of exhausted events in a row the endpoint counts as dead for this run. With the most slots and
attempts that the settings allow (16 and 5) it has then got at most 100 calls."""
MOST_WAITS = 50
"""After this number of pushes in a row that the portal asked to wait, it counts as dead as well."""
LONGEST_PAUSE_SECONDS = 600.0
"""A Retry-After up to this is slept by the stage; a longer one ends it."""
GRACE_SECONDS = 6.5
"""How long calls in flight may take to end after a signal; the event of a later one keeps its lease."""
LOOK_AGAIN_SECONDS = 1.0
"""How often to look for more events while calls are in flight and slots are free."""
_LOCK_TIMEOUT_AFTER_SIGNAL_MS = 100
_TIME_IS_OVER = "the time for deliveries is over; the rest stays pending"


class PortalStage:
    """Delivers the due events until none is left, the deadline is reached, or the portal is out of order."""

    def __init__(
        self,
        service: PortalSyncService,
        *,
        database: DatabaseThread,
        make_target: MakeTarget,
        policy: RetryPolicy,
        concurrency: int = 1,
        calls_per_second: float = 0.0,
        longest_pause_seconds: float = LONGEST_PAUSE_SECONDS,
        on_progress: Callable[[int], None] | None = None,
        counts: PortalCounts,
    ) -> None:
        """``on_progress`` is called in the database's thread."""
        self._service = service
        self._database = database
        self._make_target = make_target
        self._policy = policy
        self._concurrency = concurrency
        self._longest_pause_seconds = longest_pause_seconds
        self._on_progress = on_progress
        self._rate = RateLimiter(calls_per_second=calls_per_second)
        self._halt = asyncio.Event()
        """Begin nothing more, retry nothing more."""
        self._pusher: Pusher
        self._claimed: deque[tuple[PortalEvent, Lease]] = deque()
        """Claimed, and begun at once."""
        self._flying: set[asyncio.Task[Push]] = set()
        self._landed: deque[Push] = deque()
        """Ended and judged, to be settled."""
        self._exhausted_in_a_row = 0
        self._waits_in_a_row = 0
        """After the first of them one call at a time tries, until the portal does its work."""
        self._deadline_at = 0.0
        self._stopped: StageStop | None = None
        self._record_end: Callable[[], None] | None = None
        """Gives the open hides the reason of an early end."""
        self._crash: BaseException | None = None
        self._counts = counts

    async def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Deliver; return why the stage ended early, or None: nothing is left to do, or a signal came.

        Raises what a push has raised that nobody foresaw, once the others are settled.
        """
        self._deadline_at = time.monotonic() + deadline_seconds
        grace_seconds = GRACE_SECONDS
        await self._database.run(self._service.take_back)
        async with self._make_target() as target:
            self._pusher = Pusher(target=target, policy=self._policy, rate=self._rate, halt=self._halt)
            signal = asyncio.ensure_future(self._halt_at_signal())
            try:
                await self._deliver(signal)
            except asyncio.CancelledError:
                grace_seconds = 0.0  # it is over, or a second signal has come
                raise
            finally:
                signal.cancel()
                await self._wind_down(grace_seconds)
        if self._record_end is not None:
            await self._database.run(self._record_end, settles=True)
        if self._crash is not None:
            raise self._crash
        return self._stopped

    async def _halt_at_signal(self) -> None:
        await self._database.stopped.wait()
        self._halt.set()

    async def _deliver(self, signal: "asyncio.Future[None]") -> None:
        """Begin, settle and wait, until nothing is left to do or to wait for."""
        while not self._database.stopped.is_set():
            if not self._halt.is_set():
                await self._begin_more()
            hold_seconds = 0.0 if self._halt.is_set() else self._rate.seconds_left()
            if not (self._flying or self._landed or hold_seconds > 0):
                return
            await self._settle()
            left = (LOOK_AGAIN_SECONDS, hold_seconds, self._deadline_at - time.monotonic())
            seconds = min(each for each in left if each > 0)
            if self._flying:
                await self._land(seconds, signal)
            elif hold_seconds > 0:
                await wait(seconds, self._halt)

    async def _begin_more(self) -> None:
        """Claim and begin what has a slot and its turn; or end the stage, early only if something is left."""
        if time.monotonic() >= self._deadline_at:
            await self._claim(1)
            self._halt.set()
            if self._claimed:
                self._end("deadline", _TIME_IS_OVER)
            return
        free = (1 if self._waits_in_a_row else self._concurrency) - len(self._flying)
        if free <= 0 or self._rate.seconds_left() > 0:
            return
        await self._claim(1 if self._rate.is_limited else free)
        while self._claimed and not self._halt.is_set():
            event, lease = self._claimed.popleft()
            self._rate.begin()
            self._flying.add(asyncio.ensure_future(self._pusher.push(event, lease)))

    async def _claim(self, limit: int) -> None:
        self._claimed.extend(await self._database.run(partial(self._service.claim, limit)))
        if self._claimed and not self._claimed[0][1].fits(self._policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):
            self._end("lease", "the lease is shorter than a push can take, or this process stood still; the rest waits")

    async def _land(self, seconds: float, *signal: "asyncio.Future[None]") -> None:
        """Wait for a push to end, at most this long, and judge those that have ended.

        A signal ends the wait as well: the grace counts from the signal, not from the next look.
        """
        waiting: set[asyncio.Future[Any]] = {*self._flying, *signal}
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        ended = {task for task in self._flying if task.done()}
        self._flying -= ended
        for task in ended:
            if task.cancelled():  # nobody knows how far its call has come: the event keeps its lease
                continue
            if (crash := task.exception()) is not None:
                self._halt.set()
                self._crash = self._crash or crash
                continue
            self._judge(task.result())
            self._landed.append(task.result())

    async def _settle(self) -> None:
        """Settle each push alone: one that fails does not drop the others."""
        failed: Exception | None = None
        while self._landed:
            push = self._landed.popleft()
            try:
                await self._database.run(partial(self._settle_one, push), settles=True)
            except Exception as error:  # noqa: BLE001 - raised once all have had their turn
                failed = failed or error
                continue
            if push.outcome is PushOutcome.THROTTLED:
                # The row's wait began with the settle: a claim before its end finds nothing.
                self._rate.hold(push.asked_seconds)
        if failed is not None:
            raise failed

    def _settle_one(self, push: Push) -> None:
        """In the database's thread: write what became of one push."""
        lock_timeout_ms = _LOCK_TIMEOUT_AFTER_SIGNAL_MS if self._database.stopped.is_set() else None
        self._service.settle(push, self._counts, lock_timeout_ms=lock_timeout_ms)
        if self._on_progress is not None and push.is_tried:
            self._on_progress(self._counts.delivered + self._counts.failed)

    def _judge(self, push: Push) -> None:
        """Decide from one outcome whether the stage goes on."""
        error = push.error
        if push.outcome in (PushOutcome.DELIVERED, PushOutcome.BLOCKED):
            if error is None or error.attempts:  # the portal was called, and does its work
                self._exhausted_in_a_row = self._waits_in_a_row = 0
        elif error is not None:
            self._judge_failure(push, error.cause)

    def _judge_failure(self, push: Push, cause: PortalCallError) -> None:
        if push.outcome is PushOutcome.REFUSED:
            reason = f"{cause}; nothing was pushed to anybody after that, all events stay queued"
            self._end("refused" if cause.status is None else f"refused:{cause.status}", reason, cause)
        elif push.outcome is PushOutcome.THROTTLED:
            self._waits_in_a_row += 1
            seconds = push.asked_seconds
            if seconds > self._longest_pause_seconds or time.monotonic() + seconds >= self._deadline_at:
                self._end("retry_after", f"the portal asked to wait {seconds:,.0f} s; the rest stays pending", cause)
            elif self._waits_in_a_row >= MOST_WAITS:
                reason = f"the portal asked {MOST_WAITS} pushes in a row to wait; the rest stays pending"
                self._end("breaker", reason, cause)
        elif push.outcome is PushOutcome.FAILED:
            self._exhausted_in_a_row += 1
            if self._exhausted_in_a_row >= BREAKER_FAILURES:
                reason = f"{BREAKER_FAILURES} pushes in a row failed (last: {cause}); the rest stays pending"
                self._end("breaker", reason, cause)
        elif time.monotonic() >= self._deadline_at:  # its repeats were cut short
            self._end("deadline", _TIME_IS_OVER)

    def _end(self, code: str, reason: str, cause: PortalCallError | None = None) -> None:
        self._halt.set()
        if self._stopped is not None:
            return
        refusal = cause if isinstance(cause, PortalStageError) else None
        self._stopped = StageStop(stage="portal", code=code, reason=reason, fault=str(refusal) if refusal else "")
        self._record_end = partial(
            self._service.record_stage_end,
            str(self._stopped),
            code=refusal.code if refusal else FailureCode(code),
            correlation_id=cause.correlation_id if cause else None,
        )

    async def _wind_down(self, grace_seconds: float) -> None:
        """After the loop, or an error in it: settle what ends in time, release what is claimed and not begun."""
        self._halt.set()
        until = time.monotonic() + grace_seconds
        self._landed.extend(Push(event=event, outcome=PushOutcome.NOT_TRIED) for event, _ in self._claimed)
        try:
            await self._settle()
            while self._flying and (seconds := until - time.monotonic()) > 0:
                await self._land(seconds)
                await self._settle()
        finally:
            for task in self._flying:
                task.cancel()
            await asyncio.gather(*self._flying, return_exceptions=True)
