"""The event loop of a delivery, and the one thread through which it talks to the database.

    async def deliver(database: DatabaseThread) -> None:
        events, lease = await database.run(lambda: portal.claim(limit=4))
        ...
    run_loop(deliver, connection=connection, stop=stop, deadline_seconds=7200)

Nothing in the loop blocks: calls are tasks, and statements run in the thread, one piece of work after the other.
"""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg

from certjob.database import NO_ANSWER, RUN_AGAIN, Connection, hang_up
from certjob.errors import DatabaseUnavailableError
from certjob.stopping import StopFlag

T = TypeVar("T")

LONGEST_WORK_AFTER_DEADLINE_SECONDS = 10.0
"""How long one piece of database work may go on after the deadline before it is broken off."""
_CANCEL_SECONDS = 0.5
"""How long a server may take to accept the request to cancel a statement, and the same again to cancel it. Then the
connection is closed."""
_HARD_END_SECONDS = 9.0
"""Work that has not ended this long after it was broken off never will: the process ends."""


class DatabaseThread:
    """The one thread that uses the connection while the loop runs; and whether the loop is to end."""

    def __init__(self, connection: Connection, *, stop: StopFlag, deadline_seconds: float) -> None:
        self._connection = connection
        self._stop = stop
        self._deadline_at = time.monotonic() + deadline_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._pieces_begun = 0
        self._pieces_ended = 0
        self.stopped = asyncio.Event()
        """Set by a signal: then the loop has the grace to end in its own way."""
        self.broken_off = False
        """Whether a statement was ended that waited for too long."""

    def end_within(self, seconds: float) -> None:
        """Set the deadline anew: each stage has its own."""
        self._deadline_at = time.monotonic() + seconds

    async def run(self, work: Callable[[], T], *, settles: bool = False) -> T:
        """Do ``work`` in the thread and return its result, after all that was handed in before.

        It is never cut in two: when the caller's task is cancelled meanwhile, the result is returned all the same, and
        the cancellation comes with the task's next ``await``. What waits too long is broken off in the database: after
        the grace of a signal, and some seconds after the deadline. That can hit the next piece of work instead, so
        what ``settles`` an outcome is then done once more.
        """
        try:
            return await self._run(work)
        except psycopg.errors.QueryCanceled:
            if not (settles and self.broken_off):
                raise
            return await self._run(work)

    async def _run(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._do, work)
        was_cancelled = False
        try:
            while not future.done():
                seconds = max(self._deadline_at - time.monotonic(), 0) + LONGEST_WORK_AFTER_DEADLINE_SECONDS
                try:
                    await asyncio.wait({future}, timeout=seconds)
                    if not future.done():
                        await self._end_overdue(future)
                except asyncio.CancelledError:
                    was_cancelled = True
            return future.result()
        finally:
            task = asyncio.current_task()
            if was_cancelled and task is not None:
                task.cancel()

    def _do(self, work: Callable[[], T]) -> T:
        self._pieces_begun += 1
        try:
            return work()
        finally:
            self._pieces_ended += 1

    async def break_off(self) -> None:
        """End what is running in the database: ask the server, then close the connection under it."""
        piece = self._pieces_begun
        if piece == self._pieces_ended:
            return
        self.broken_off = True
        asking = asyncio.get_running_loop().run_in_executor(None, self._ask_to_cancel)
        await asyncio.wait({asking}, timeout=_CANCEL_SECONDS)
        until = time.monotonic() + _CANCEL_SECONDS
        while piece != self._pieces_ended:
            if time.monotonic() > until:
                hang_up(self._connection)
                return
            await asyncio.sleep(0.02)

    def _ask_to_cancel(self) -> None:
        with suppress(psycopg.Error):  # a closed connection, a server that is away: the work in hand will tell
            self._connection.cancel_safe(timeout=_CANCEL_SECONDS)

    async def _end_overdue(self, future: "asyncio.Future[Any]") -> None:
        await self.break_off()
        await asyncio.wait({future}, timeout=_HARD_END_SECONDS)
        if not future.done():
            self._stop.end_hard(DatabaseUnavailableError(NO_ANSWER, next_step=RUN_AGAIN))


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

    async def run() -> T:
        asyncio.get_running_loop().set_default_executor(NameLookups())
        return await work

    return asyncio.run(run())


def run_loop(
    main: Callable[[DatabaseThread], Coroutine[Any, Any, T]],
    *,
    connection: Connection,
    stop: StopFlag,
    deadline_seconds: float,
) -> T:
    """Run ``main`` in an event loop and return its result; meanwhile nobody else may use the connection.

    When ``stop`` is set, ``main`` has the grace to end in its own way. After that, or at a second signal, its task is
    cancelled once, which raises StoppedBySignalError here; what it does in a ``finally`` still runs. Works in any
    thread.
    """

    database = DatabaseThread(connection, stop=stop, deadline_seconds=deadline_seconds)
    tasks: list[asyncio.Task[Any]] = []

    async def run() -> T:
        asyncio.get_running_loop().set_default_executor(NameLookups())
        if stop.is_set():
            database.stopped.set()
        task = asyncio.ensure_future(main(database))
        tasks.append(task)
        try:
            return await task
        except (asyncio.CancelledError, psycopg.Error, DatabaseUnavailableError) as error:
            if stop.is_set():  # the signal is the reason for whatever broke after it
                raise stop.error() from error
            raise

    def break_off() -> None:
        if tasks and not tasks[0].done():  # before it is made, ``stopped`` is enough to end it
            tasks.append(asyncio.ensure_future(database.break_off()))
            tasks[0].cancel()

    def in_the_loop(what: Callable[[], object]) -> None:
        """A signal handler must not raise while the loop begins or ends."""
        if not loop.is_closed():
            loop.call_soon_threadsafe(what)

    interrupt = stop.break_off
    try:
        with asyncio.Runner() as runner, _woken_by_signals(loop := runner.get_loop()):
            stop.on_set, stop.break_off = lambda: in_the_loop(database.stopped.set), lambda: in_the_loop(break_off)
            return runner.run(run())
    finally:
        stop.on_set, stop.break_off = None, interrupt


@contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let every signal wake the loop; Python runs its handler only then, in the main thread.

    A signal that comes just before the loop goes to sleep, or in another thread, would else wait for its next timer:
    for the whole time for deliveries, if the database is silent.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        loop.add_reader(ours, ours.recv, 4096)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(ours)
