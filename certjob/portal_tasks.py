"""What lies ready for the portal's threads: how much of it, by the pace at which pushes go, and taking it back."""

import contextlib
import queue
from dataclasses import dataclass

from certjob.outbox import Lease
from certjob.portal_push import PortalEvent, Push

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


class TaskQueue(queue.SimpleQueue[Task | None]):
    """From the thread that claims to those that push; None ends a thread."""

    def take_back(self) -> list[Task]:
        """Return what no thread has taken up yet."""
        tasks: list[Task] = []
        with contextlib.suppress(queue.Empty):
            while (task := self.get_nowait()) is not None:
                tasks.append(task)
        return tasks
