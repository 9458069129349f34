"""The event loop of a delivery: one thread for the database, an end in time whatever hangs."""

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.outbox import loop
from certjob.outbox.loop import DatabaseThread, run_loop
from certjob.stopping import StopFlag
from tests.support.stalling_proxy import StallingProxy

T = TypeVar("T")


def run(
    main: Callable[[DatabaseThread], Coroutine[Any, Any, T]],
    connection: Connection,
    *,
    stop: StopFlag | None = None,
    deadline_seconds: float = 60,
) -> T:
    return run_loop(main, connection=connection, stop=stop or StopFlag(), deadline_seconds=deadline_seconds)


def test_pieces_of_work_never_overlap_and_keep_their_order(connection: Connection) -> None:
    """Ten tasks want the one connection at once, each for a transaction."""
    began: list[int] = []
    threads: set[int] = set()

    def work(number: int) -> int:
        threads.add(threading.get_ident())
        began.append(number)
        with database.transaction(connection):
            connection.execute("SELECT pg_sleep(0.005)")
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        return number

    async def main(database: DatabaseThread) -> list[int]:
        return await asyncio.gather(*(database.run(lambda n=n: work(n)) for n in range(10)))  # type: ignore[misc]

    assert run(main, connection) == began == list(range(10))
    assert len(threads) == 1


def test_the_result_of_work_survives_the_cancellation_of_who_waits_for_it(connection: Connection) -> None:
    """What was claimed must be known, or nobody can release it; the cancellation comes at the next await."""
    seen: list[object] = []

    async def claims(database: DatabaseThread) -> None:
        seen.append(await database.run(lambda: connection.execute("SELECT 7 FROM pg_sleep(0.2)").fetchone()))
        await asyncio.sleep(60)

    async def main(database: DatabaseThread) -> None:
        task = asyncio.ensure_future(claims(database))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main, connection)

    assert seen == [(7,)]


def test_a_name_lookup_that_hangs_holds_up_nothing(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other lookups, nor the database, nor the end."""
    let_go = threading.Event()
    known = socket.getaddrinfo

    def look_up(host: str, *arguments: Any, **named: Any) -> Any:
        return let_go.wait(60) if host == "hangs.example" else known(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def main(database: DatabaseThread) -> object:
        event_loop = asyncio.get_running_loop()
        hanging = [asyncio.ensure_future(event_loop.getaddrinfo("hangs.example", 80)) for _ in range(8)]
        await asyncio.sleep(0.05)
        assert await event_loop.getaddrinfo("127.0.0.1", 80)
        row = await database.run(lambda: connection.execute("SELECT 1").fetchone())
        assert not any(task.done() for task in hanging)
        return row

    started = time.monotonic()
    try:
        assert run(main, connection) == (1,)
        assert time.monotonic() - started < 5
    finally:
        let_go.set()


def test_a_stop_wakes_the_loop(connection: Connection) -> None:
    """From another thread, as from a signal handler; one that came before is seen, too."""
    stop = StopFlag()

    async def main(database: DatabaseThread) -> str:
        await asyncio.wait_for(database.stopped.wait(), 30)
        return "ended in its own way"

    threading.Timer(0.05, stop.set).start()
    assert run(main, connection, stop=stop) == "ended in its own way"
    assert run(main, connection, stop=stop) == "ended in its own way"


def test_after_the_grace_a_statement_is_cancelled_and_a_settle_done_once_more(
    connection: Connection, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """What else waits ends the loop; the signal is the reason that is told."""
    stop = StopFlag()
    app.execute("LOCK TABLE mentors")
    settles: list[str] = []

    def settle() -> None:
        settles.append("begun")
        if len(settles) == 2:
            app.rollback()
        connection.execute("SELECT FROM mentors")

    async def main(database: DatabaseThread) -> None:
        asyncio.get_running_loop().call_later(0.3, break_off, stop)
        await database.run(settle, settles=True)
        settles.append("settled")
        await asyncio.sleep(60)

    with pytest.raises(StoppedBySignalError):
        run(main, connection, stop=stop)

    assert settles == ["begun", "begun", "settled"]


def break_off(stop: StopFlag) -> None:
    """What a signal does whose grace is over."""
    stop.set()
    stop.break_off()


def test_a_cancelled_main_still_does_what_it_must(connection: Connection) -> None:
    """The release of what was claimed, in a finally."""
    stop = StopFlag()
    done: list[object] = []

    async def main(database: DatabaseThread) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            done.append(await database.run(lambda: connection.execute("SELECT 'released'").fetchone()))

    threading.Timer(0.1, break_off, [stop]).start()
    with pytest.raises(StoppedBySignalError):
        run(main, connection, stop=stop)

    assert done == [("released",)]


def test_a_database_that_stalls_is_hung_up_on_after_a_signal(database_url: str) -> None:
    """Its proxy keeps the connection open and swallows the cancellation as well."""
    stop = StopFlag()
    with StallingProxy(database_url) as proxy, database.connect(proxy.url) as connection:
        database.outlast_restarts(connection, stop=stop)

        async def main(database: DatabaseThread) -> None:
            proxy.stall()
            asyncio.get_running_loop().call_later(0.1, break_off, stop)
            await database.run(lambda: connection.execute("SELECT 1"), settles=True)

        started = time.monotonic()
        with pytest.raises(StoppedBySignalError):
            run(main, connection, stop=stop)
        assert time.monotonic() - started < 5


def test_a_database_that_stalls_does_not_outlast_the_deadline(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the run wait for it to come back; the next statement on that connection says the same."""
    monkeypatch.setattr(loop, "LONGEST_WORK_AFTER_DEADLINE_SECONDS", 0.2)
    stop = StopFlag()
    with StallingProxy(database_url) as proxy, database.connect(proxy.url) as connection:
        database.outlast_restarts(connection, stop=stop)

        async def main(thread: DatabaseThread) -> None:
            proxy.stall()
            await thread.run(lambda: database.fetch_value(connection, "read_clock"))

        started = time.monotonic()
        with pytest.raises(DatabaseUnavailableError, match="does not answer"):
            run(main, connection, stop=stop, deadline_seconds=0.1)
        assert time.monotonic() - started < 5
        with pytest.raises(DatabaseUnavailableError, match="does not answer"):
            database.fetch_value(connection, "read_clock")


def test_a_statement_that_ends_by_itself_soon_after_the_deadline_is_let_end(connection: Connection) -> None:
    """What was delivered in time is settled."""

    async def main(database: DatabaseThread) -> object:
        return await database.run(lambda: connection.execute("SELECT 1 FROM pg_sleep(0.3)").fetchone())

    assert run(main, connection, deadline_seconds=0.05) == (1,)


def test_a_second_signal_breaks_nothing_while_the_loop_begins(connection: Connection) -> None:
    """An exception in the loop's own first steps would leave half-made tasks behind, and more than a line."""
    stop = StopFlag()

    def main(_database: DatabaseThread) -> Coroutine[Any, Any, None]:
        stop.set()
        stop.break_off()
        return asyncio.sleep(60)

    with pytest.raises(StoppedBySignalError):
        run(main, connection, stop=stop)


def test_a_second_signal_breaks_nothing_while_the_loop_ends(connection: Connection) -> None:
    """What is done is done: the result is returned, and whoever asks for it looks at the flag."""
    stop = StopFlag()

    async def is_left_over() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            stop.set()
            stop.break_off()

    async def main(_database: DatabaseThread) -> object:
        left_over = asyncio.ensure_future(is_left_over())
        await asyncio.sleep(0)
        return left_over

    assert run(main, connection, stop=stop)


def test_a_second_signal_leaves_no_task_behind_when_the_loop_has_ended(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the loop's last turn no task is begun that would never run: asyncio complains of those on stderr."""
    stop = StopFlag()
    usual = asyncio.BaseEventLoop.shutdown_default_executor

    async def with_a_signal(loop: asyncio.BaseEventLoop, *timeout: float) -> None:
        await usual(loop, *timeout)
        stop.set()
        stop.break_off()

    monkeypatch.setattr(asyncio.BaseEventLoop, "shutdown_default_executor", with_a_signal)

    async def main(_database: DatabaseThread) -> bool:
        return True

    assert run(main, connection, stop=stop)
    gc.collect()
