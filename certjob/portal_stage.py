"""The portal stage of a night: threads make the calls, one thread owns the database and decides when to stop."""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from certjob.errors import DynamicsSyncException, PermanentPortalError, PortalStageError, TransientPortalError
from certjob.portal_gate import Gate
from certjob.portal_push import CALL_DEADLINE_SECONDS, PortalTarget, Push, asked_to_wait, push_event, refusal_code
from certjob.portal_sync import PortalCounts, PortalSyncService
from certjob.portal_tasks import Pace, Task, TaskQueue
from certjob.retry import RetryPolicy
from certjob.stages import StageStop
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
_POLL_SECONDS = 0.2
_GATHER_SECONDS = 0.02
"""While the threads have work, answers are let come for so long and settled together: a settle keeps the interpreter
from the threads, and hardly longer for twenty answers than for one."""
LOOK_AGAIN_SECONDS = 1.0
"""What is claimed and waits for its turn is looked at so often: it may not be wanted any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Crash:
    """A thread ended by an error that nobody foresaw."""

    error: BaseException
    had_task: bool
    """False: it could not even begin."""


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
        self._make_target = make_target
        self._policy = policy
        self._concurrency = concurrency
        self._stop = stop
        self._on_progress = on_progress
        self._queue_more = queue_more
        self._gate = Gate(calls_per_second=calls_per_second)
        self._halt = StopFlag()  # tells the threads: begin nothing more, retry nothing more
        self._tasks = TaskQueue()
        self._answers: queue.SimpleQueue[Push | _Crash] = queue.SimpleQueue()
        self._ready: deque[Task] = deque()
        self._looked_at = 0.0
        self._in_flight = 0
        self._pace = Pace(threads=concurrency)
        self._failures_in_a_row = 0
        self._calls_in_vain = 0
        self._pauses_in_a_row = 0
        self._pause_until = 0.0
        self._deadline_at = 0.0
        self._stopped: StageStop | None = None
        self._crash: BaseException | None = None
        self.counts = PortalCounts()

    def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Deliver; return why the stage ended early, or None. Raises StoppedBySignalError after a signal."""
        self._deadline_at = time.monotonic() + deadline_seconds
        threads = [
            threading.Thread(target=self._work, name=f"portal-{number}", daemon=True)
            for number in range(self._concurrency)
        ]
        started: list[threading.Thread] = []
        try:
            while self._crash is None and self._refill():
                for thread in threads[len(started) : self._in_flight + len(self._ready)]:
                    thread.start()
                    started.append(thread)
                self._dispatch()
                self._collect()
        finally:
            try:
                self._wind_down()
            finally:  # also when the database is gone: each thread holds a connection to the portal
                for _ in started:
                    self._tasks.put(None)
        self._service.record_late(self._stop, self.counts)
        if self._stopped is not None:
            self._service.record_stage_end(str(self._stopped), correlation_id=self._stopped.correlation_id)
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
            self._halt.set()
            if not self._is_anything_left():
                return self._in_flight > 0
            self._end("deadline", "the time for deliveries is over; the rest stays pending")
        if self._stopped:
            self._release_ready()
            return self._in_flight > 0
        if now < self._pause_until:
            self._release_ready()  # no lease is held over a long pause
            if not self._in_flight:
                self._stop.wait(min(self._pause_until - now, 1.0))
            return True
        if len(self._ready) < self._concurrency:
            self._claim()
        return bool(self._ready or self._in_flight or self._queue_more)

    def _claim(self) -> None:
        """Claim what is due; when nothing is, let more be queued."""
        events, lease = self._service.claim(limit=self._pace.claim_limit)
        self._looked_at = time.monotonic()
        if not events and self._queue_more is not None:
            if not self._queue_more():
                self._queue_more = None
            events, lease = self._service.claim(limit=self._pace.claim_limit)
        self._ready.extend(Task(event=event, lease=lease) for event in events)
        if events and not lease.fits(self._policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):
            self._end("lease", "the lease is shorter than a push can take, or this process stood still; the rest waits")
            self._release_ready()

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
            events, lease = self._service.claim(limit=1)
            self._ready.extend(Task(event=event, lease=lease) for event in events)
        return bool(self._ready or self._queue_more)

    def _dispatch(self) -> None:
        if time.monotonic() - self._looked_at > LOOK_AGAIN_SECONDS:
            self._recall()
            if self._ready:
                self._drop_stale()
        at_once = 1 if self._pauses_in_a_row else self._concurrency + self._pace.ahead  # after a pause, one call tries
        # Each push that is in flight may make all its calls in vain.
        at_once = min(at_once, (MOST_CALLS_IN_VAIN - self._calls_in_vain) // self._policy.max_attempts)
        if at_once < 1 and not self._in_flight and self._ready:
            self._end("breaker", f"{self._calls_in_vain} calls in a row were in vain; the rest stays pending")
        while self._ready and self._in_flight < at_once:
            self._tasks.put(self._ready.popleft())
            self._in_flight += 1

    def _collect(self) -> None:
        """Wait for an answer, take all that are there, settle them together."""
        if not self._in_flight:
            return
        answers: list[Push | _Crash] = []
        with contextlib.suppress(queue.Empty):
            answers.append(self._answers.get(timeout=_POLL_SECONDS))
            self._let_more_come()
            while True:
                answers.append(self._answers.get_nowait())
        pushes = [answer for answer in answers if isinstance(answer, Push)]
        crashes = [answer for answer in answers if isinstance(answer, _Crash)]
        self._in_flight -= len(pushes) + sum(crash.had_task for crash in crashes)
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

    def _let_more_come(self) -> None:
        """Wait a moment for further answers, while half of what was begun still lies ready for the threads."""
        until = time.monotonic() + _GATHER_SECONDS
        while self._tasks.qsize() > self._in_flight // 2 and time.monotonic() < until:
            if self._stop.wait(_GATHER_SECONDS / 4):
                return

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
            self._failures_in_a_row = 0
        elif isinstance(error.cause, PortalStageError):
            reason = f"{error.cause}; nothing was pushed to anybody after that, all events stay queued"
            self._end(refusal_code(error.cause), reason, error)
        elif isinstance(error.cause, TransientPortalError):
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= BREAKER_FAILURES:
                reason = f"{BREAKER_FAILURES} pushes in a row failed (last: {error.cause}); the rest stays pending"
                self._end("breaker", reason, error)
        else:
            self._failures_in_a_row = 0

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
            self._halt.set()

    def _wind_down(self) -> None:
        """After the loop, or an error in it: nothing more begins, what ends in time is settled, the rest released."""
        self._halt.set()
        until = time.monotonic() + _GRACE_SECONDS
        self._release_ready()
        while self._in_flight and time.monotonic() < until:
            self._collect()

    def _recall(self) -> None:
        """Take back what no thread has taken up yet, to the head of the line."""
        tasks = self._tasks.take_back()
        self._in_flight -= len(tasks)
        self._ready.extendleft(reversed(tasks))

    def _release_ready(self) -> None:
        self._recall()
        if self._ready:
            self._service.release([task.event for task in self._ready])
            self._ready.clear()

    def _work(self) -> None:
        """One thread: take a task, wait for its turn, push, answer."""
        task: Task | None = None
        try:
            with self._make_target() as target:
                while (task := self._tasks.get()) is not None:
                    began = time.monotonic()
                    push = self._push(task, target)
                    self._pace.note(push, seconds=time.monotonic() - began)
                    self._answers.put(push)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that owns the run
            self._answers.put(_Crash(error=error, had_task=task is not None))

    def _push(self, task: Task, target: PortalTarget) -> Push:
        event = task.event
        if not event.has_portal or not self._gate.wait(self._halt):
            return Push(event=event, begun=False)
        if not task.lease.fits(self._policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):
            return Push(event=event, begun=False)

        gave_way = False

        def may_repeat() -> bool:
            nonlocal gave_way
            gave_way = not self._gate.wait(self._halt)
            return not gave_way and task.lease.fits(CALL_DEADLINE_SECONDS)

        try:
            push_event(
                event,
                target,
                policy=self._policy,
                stop=self._halt,
                on_wait=self._hold_others,
                may_repeat=may_repeat,
            )
        except DynamicsSyncException as error:
            if isinstance(error.cause, PortalStageError):
                self._halt.set()  # at once: what lies ready for the threads is not begun
            self._hold_others(error.cause, 0.0)  # its last call may have asked for a wait, too
            cut_short = (gave_way or self._halt.is_set()) and error.attempts < self._policy.max_attempts
            transient = isinstance(error.cause, TransientPortalError) and asked_to_wait(error) is None
            return Push(event=event, error=error, begun=not (cut_short and transient))
        return Push(event=event)

    def _hold_others(self, error: Exception, seconds: float) -> None:
        """Hold all threads while the portal asked to wait, at least for the wait that is slept anyway."""
        if isinstance(error, TransientPortalError) and error.retry_after_seconds:
            self._gate.hold(max(seconds, error.retry_after_seconds))
