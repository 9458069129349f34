"""Run asynchronous calls from synchronous code, in an event loop in the caller's thread.

    with Calls(stop) as calls, calls.opened(HLFDynamicsSyncService(url, key)) as portal:
        calls.make(portal.update_portal_visibility(contact_id, visible=False, idempotency_key="1-1"))

The loop runs only while the caller waits for a call. Between two waits, calls in flight pause, connections stay open,
and the caller can use the database as usual.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, Self, TypeVar

from certjob.stopping import GRACE_SECONDS, StopFlag

T = TypeVar("T")

_POLL_SECONDS = 0.1
"""How often a wait checks for a signal."""
_SETTLING_SECONDS = 1.0
"""The part of the grace period that remains for the database after calls were cancelled."""


class Calls:
    """Starts calls and waits for them. After a signal, calls in flight may finish within the grace period."""

    def __init__(self, stop: StopFlag) -> None:
        self._stop = stop
        self._runner = _runner()
        self.stopped = asyncio.Event()
        """Set soon after a signal: calls in flight may finish, but are not retried."""

    def begin(self, call: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start one call. It proceeds during any wait."""
        return self._runner.get_loop().create_task(call)

    def make(self, call: Coroutine[Any, Any, T]) -> T:
        """Start one call, wait for it and return its result; see ``wait_for_one``."""
        task = self.begin(call)
        self.wait_for_one({task})
        return task.result()

    def wait_for_one(self, tasks: "Set[asyncio.Task[Any]]") -> "Set[asyncio.Task[Any]]":
        """Wait until at least one of these calls has finished, and return all finished calls.

        Raises StoppedBySignalError if none finishes within the grace period; their outcomes are then unknown.
        """
        with self._stop.watched():
            return self._runner.run(self._wait(tasks))

    async def _wait(self, tasks: "Set[asyncio.Task[Any]]") -> "Set[asyncio.Task[Any]]":
        while True:
            if self._stop.is_set():
                self.stopped.set()
            done, flying = await asyncio.wait(tasks, timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return done
            if self._stop.is_urgent or self._stop.seconds_since_set >= GRACE_SECONDS - _SETTLING_SECONDS:
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
    """Runs each name lookup in a separate daemon thread, because a hanging lookup must not delay others or the exit.

    It is a ThreadPoolExecutor, because asyncio accepts no other default executor.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        future: Future[T] = Future()

        def look_up() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - raised by future.result()
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=look_up, name="name-lookup", daemon=True).start()
        return future


def run_alone(work: Coroutine[Any, Any, T]) -> T:
    """Run one call in a new event loop and return its result."""
    with _runner() as runner:
        return runner.run(work)


def _runner() -> asyncio.Runner:
    runner = asyncio.Runner()
    runner.get_loop().set_default_executor(NameLookups())
    return runner
