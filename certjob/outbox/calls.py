"""Calls to the outside by code that waits for each: an event loop that runs only meanwhile, in the caller's thread.

    with Calls(stop) as calls, calls.opened(HLFDynamicsSyncService(url, key)) as portal:
        calls.make(portal.update_portal_visibility(contact_id, visible=False, idempotency_key="1-1"))

The loop runs only while somebody waits for a call, so the database is used as everywhere else. Calls that were begun
stand still meanwhile, and connections stay open.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Self, TypeVar

from certjob.stopping import GRACE_SECONDS, StopFlag

T = TypeVar("T")

_LOOK_SECONDS = 0.1
"""How often a call under way looks whether a signal has come."""
_SETTLING_SECONDS = 1.0
"""What is left of the grace for the database, once a call was broken off."""


class Calls:
    """Begins calls and waits for them. A signal raises nothing inside one: what is under way has the grace to end."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._runner = _runner()
        self._patience_is_over = False
        self.stopped = asyncio.Event()
        """Set soon after a signal: a call under way may end, and is not repeated."""

    def begin(self, call: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Begin one call; it goes on while any is waited for."""
        return self._runner.get_loop().create_task(call)

    def make(self, call: Coroutine[Any, Any, T]) -> T:
        """Begin one call, wait for it and return its result; see ``wait_for_one``."""
        task = self.begin(call)
        self.wait_for_one({task})
        return task.result()

    def wait_for_one(self, tasks: "Set[asyncio.Task[Any]]") -> "Set[asyncio.Task[Any]]":
        """Wait until one of these calls has ended; return all that have.

        Raises StoppedBySignalError when none ends within the grace: nobody knows how far they have come.
        """
        usual, self._stop.break_off = self._stop.break_off, self._give_up
        try:
            return self._runner.run(self._watched(tasks))
        finally:
            self._stop.break_off = usual

    def _give_up(self) -> None:
        self._patience_is_over = True

    async def _watched(self, tasks: "Set[asyncio.Task[Any]]") -> "Set[asyncio.Task[Any]]":
        while True:
            if self._stop.is_set():
                self.stopped.set()
            done, flying = await asyncio.wait(tasks, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return done
            if self._patience_is_over or self._stop.seconds_since_set >= GRACE_SECONDS - _SETTLING_SECONDS:
                for task in flying:
                    task.cancel()
                await asyncio.wait(flying, timeout=_SETTLING_SECONDS)
                raise self._stop.error()

    @contextmanager
    def opened(self, client: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Open a client for the block."""
        opened = self.make(client.__aenter__())
        try:
            yield opened
        finally:
            self.make(client.__aexit__(None, None, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.close()


class NameLookups(ThreadPoolExecutor):
    """Does each name lookup in a daemon thread of its own: one that hangs holds up neither the others nor the end.

    asyncio takes nothing but a ThreadPoolExecutor as its default executor.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()

        def look_up() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=look_up, name="name-lookup", daemon=True).start()
        return future


def run_alone(work: Coroutine[Any, Any, T]) -> T:
    """Run one call in an event loop of its own, as for a check, and return its result."""
    with _runner() as runner:
        return runner.run(work)


def _runner() -> asyncio.Runner:
    runner = asyncio.Runner()
    runner.get_loop().set_default_executor(NameLookups())
    return runner
