"""The threads that call the portal: they take tasks and give back pushes, and know nothing of the database."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from certjob.errors import DynamicsSyncException, PortalStageError, TransientPortalError
from certjob.outbox.claims import Lease
from certjob.outbox.retry import RetryPolicy
from certjob.portal.push import (
    CALL_DEADLINE_SECONDS,
    LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS,
    PortalEvent,
    PortalTarget,
    Push,
    asked_to_wait,
    push_event,
)
from certjob.stopping import StopFlag

_POLL_SECONDS = 0.2
_GATHER_SECONDS = 0.02
"""While the threads have work, answers are let come for so long and taken together: a settle keeps the interpreter
from the threads, and hardly longer for twenty answers than for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """A thread ended by an error that nobody foresaw."""

    error: BaseException
    had_task: bool
    """False: it could not even begin."""


LARGEST_CLAIM = 100
_AHEAD_SECONDS = 0.25
"""So much work lies ready beyond what the threads do just now, so that none of them waits while answers are settled."""
_CLAIM_SECONDS = 1.0
"""So much is claimed at once where calls are slow or held back: several processes share a backlog to its end."""
_WEIGHT = 0.2
"""Of the latest push in the estimate."""


class Pace:
    """An estimate from the latest pushes; any thread may note one, and one lost beside another does no harm."""

    def __init__(self, *, threads: int, calls_per_second: float = 0.0) -> None:
        """``calls_per_second`` is how many the gate lets go; 0 = as many as come."""
        self._threads = threads
        self._calls_per_second = calls_per_second
        self._push_seconds = 0.0

    def note(self, push: Push, *, seconds: float) -> None:
        """Note how long a push took; nothing is laid ready for a portal that may be down."""
        if push.error is not None:
            self._push_seconds = 0.0
        elif push.begun:
            known = self._push_seconds or seconds
            self._push_seconds = max(known + _WEIGHT * (seconds - known), 1e-6)

    @property
    def ahead(self) -> int:
        """How many to lay ready; 0 while nothing is known."""
        return self._doable(_AHEAD_SECONDS) or 0

    @property
    def claim_limit(self) -> int:
        """How many to claim."""
        doable = self._doable(_CLAIM_SECONDS)
        if doable is None:
            doable = LARGEST_CLAIM
        if self._calls_per_second:
            doable = min(doable, int(self._calls_per_second * _CLAIM_SECONDS))
        return min(max(doable, 4 * self._threads), LARGEST_CLAIM)

    def _doable(self, seconds: float) -> int | None:
        push_seconds = self._push_seconds
        return int(self._threads * seconds / push_seconds) if push_seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A claimed event, to be pushed while its lease is good."""

    event: PortalEvent
    lease: Lease


class PortalThreads:
    """Up to ``number`` threads, started as there is work for them; whoever owns them calls from one thread."""

    def __init__(
        self,
        *,
        make_target: Callable[[], AbstractContextManager[PortalTarget]],
        policy: RetryPolicy,
        number: int,
        calls_per_second: float,
    ) -> None:
        """``make_target`` is called once in each thread: an HTTP client is not shared."""
        self._make_target = make_target
        self._policy = policy
        self._gate = Gate(calls_per_second=calls_per_second)
        self._tasks = TaskQueue()
        self._answers: queue.SimpleQueue[Push | Crash] = queue.SimpleQueue()
        self._waiting = [
            threading.Thread(target=self._work, name=f"portal-{count}", daemon=True) for count in range(number)
        ]
        self._started = 0
        self.pace = Pace(threads=number, calls_per_second=calls_per_second)
        self.halt = StopFlag()
        """Tells the threads: begin nothing more, retry nothing more."""
        self.in_flight = 0
        """How many tasks are handed over and not answered."""

    def start(self, number: int) -> None:
        """Start threads until so many run, or all."""
        while self._waiting and self._started < number:
            self._waiting.pop(0).start()
            self._started += 1

    def hand_over(self, task: Task) -> None:
        """Lay a task ready for the next thread that is free."""
        self._tasks.put(task)
        self.in_flight += 1

    def take_back(self) -> list[Task]:
        """Return what no thread has taken up yet, in its order."""
        tasks = self._tasks.take_back()
        self.in_flight -= len(tasks)
        return tasks

    def collect(self, *, stop: StopFlag) -> tuple[list[Push], list[Crash]]:
        """Wait for an answer, a fifth of a second at most; return all that are there."""
        answers: list[Push | Crash] = []
        with contextlib.suppress(queue.Empty):
            answers.append(self._answers.get(timeout=_POLL_SECONDS))
            self._let_more_come(stop)
            while True:
                answers.append(self._answers.get_nowait())
        pushes = [answer for answer in answers if isinstance(answer, Push)]
        crashes = [answer for answer in answers if isinstance(answer, Crash)]
        self.in_flight -= len(pushes) + sum(crash.had_task for crash in crashes)
        return pushes, crashes

    def end(self) -> None:
        """Let each thread end when it is free: each holds a connection to the portal."""
        for _ in range(self._started):
            self._tasks.put(None)

    def _let_more_come(self, stop: StopFlag) -> None:
        """Wait a moment for further answers, while half of what was begun still lies ready for the threads."""
        until = time.monotonic() + _GATHER_SECONDS
        while self._tasks.qsize() > self.in_flight // 2 and time.monotonic() < until:
            if stop.wait(_GATHER_SECONDS / 4):
                return

    def _work(self) -> None:
        """One thread: take a task, wait for its turn, push, answer."""
        task: Task | None = None
        try:
            with self._make_target() as target:
                while (task := self._tasks.get()) is not None:
                    began = time.monotonic()
                    push = self._push(task, target)
                    self.pace.note(push, seconds=time.monotonic() - began)
                    self._answers.put(push)
        except BaseException as error:  # noqa: BLE001 - handed to the thread that owns the run
            self._answers.put(Crash(error=error, had_task=task is not None))

    def _push(self, task: Task, target: PortalTarget) -> Push:
        event = task.event
        if not event.has_portal or not self._gate.wait(self.halt):
            return Push(event=event, begun=False)
        if not task.lease.fits(self._policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):
            return Push(event=event, begun=False)

        gave_way = False

        def may_repeat() -> bool:
            nonlocal gave_way
            gave_way = not self._gate.wait(self.halt)
            return not gave_way and task.lease.fits(CALL_DEADLINE_SECONDS)

        try:
            push_event(
                event,
                target,
                policy=self._policy,
                stop=self.halt,
                on_wait=self._hold_others,
                may_repeat=may_repeat,
            )
        except DynamicsSyncException as error:
            if isinstance(error.cause, PortalStageError):
                self.halt.set()  # at once: what lies ready for the threads is not begun
            self._hold_others(error.cause, 0.0)  # its last call may have asked for a wait, too
            cut_short = (gave_way or self.halt.is_set()) and error.attempts < self._policy.max_attempts
            transient = isinstance(error.cause, TransientPortalError) and asked_to_wait(error) is None
            return Push(event=event, error=error, begun=not (cut_short and transient))
        return Push(event=event)

    def _hold_others(self, error: Exception, seconds: float) -> None:
        """Hold all threads while the portal asked to wait, at least for the wait that is slept anyway."""
        if isinstance(error, TransientPortalError) and error.retry_after_seconds:
            self._gate.hold(max(seconds, error.retry_after_seconds))


class TaskQueue(queue.SimpleQueue[Task | None]):
    """From the thread that claims to those that push; None ends a thread."""

    def take_back(self) -> list[Task]:
        """Return what no thread has taken up yet."""
        tasks: list[Task] = []
        with contextlib.suppress(queue.Empty):
            while (task := self.get_nowait()) is not None:
                tasks.append(task)
        return tasks


class Gate:
    """Lets calls through at a rate, and holds all of them while the portal asked to wait. Shared by all threads."""

    def __init__(self, *, calls_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_seconds = 1 / calls_per_second if calls_per_second else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next_at = 0.0
        self._held_until = 0.0

    def hold(self, seconds: float) -> None:
        """Let no further call begin for so long."""
        with self._lock:
            self._held_until = max(self._held_until, self._clock() + seconds)

    def wait(self, stop: threading.Event) -> bool:
        """Wait for this call's turn; False if it is not to be made, now or at all.

        A hold that is longer than a call would sleep by itself is not waited for: the lease would run out meanwhile.
        """
        while not stop.is_set():
            with self._lock:
                now = self._clock()
                if self._held_until - now > LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS:
                    return False
                wait_seconds = max(self._held_until, self._next_at) - now
                if wait_seconds <= 0:
                    self._next_at = max(self._next_at, now - self._interval_seconds) + self._interval_seconds
                    return True
            stop.wait(wait_seconds)
        return False
