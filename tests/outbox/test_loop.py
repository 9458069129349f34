"""The event loop of a delivery: one thread for the database, an end in time whatever hangs."""

import asyncio
import gc
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.outbox import loop
from certjob.outbox.loop import DatabaseThread, run_loop
from certjob.stopping import STOP_SIGNALS, StopFlag, stop_on_signals
from tests.support.proxy import StallingProxy

Main = Callable[[DatabaseThread], Coroutine[Any, Any, Any]]


def run(main: Main, connection: Connection, *, stop: StopFlag | None = None, deadline_seconds: float = 60) -> Any:
    """Run it, which takes less than ten seconds."""
    started = time.monotonic()
    try:
        return run_loop(main, connection=connection, stop=stop or StopFlag(), deadline_seconds=deadline_seconds)
    finally:
        assert time.monotonic() - started < 10


def break_off(stop: StopFlag) -> None:
    """What a signal does whose grace is over."""
    stop.set()
    stop.break_off()


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
        await database.break_off()  # nothing is running, so nothing is ended
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
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_arguments: host == "fine.example" or let_go.wait(60))

    async def main(database: DatabaseThread) -> object:
        event_loop = asyncio.get_running_loop()
        hanging = [asyncio.ensure_future(event_loop.getaddrinfo("hangs.example", 80)) for _ in range(8)]
        await asyncio.sleep(0.05)
        assert await event_loop.getaddrinfo("fine.example", 80)
        row = await database.run(lambda: connection.execute("SELECT 1").fetchone())
        assert not any(task.done() for task in hanging)
        return row

    try:
        assert run(main, connection) == (1,)
    finally:
        let_go.set()


def test_a_stop_wakes_the_loop(connection: Connection) -> None:
    """From another thread, as from a signal handler; one that came before is seen, too.

    A signal wakes it that does not interrupt its sleep: the system hands it to another thread, or it comes between the
    loop's last look and its sleep.
    """
    stop = StopFlag()

    async def main(database: DatabaseThread) -> str:
        await asyncio.wait_for(database.stopped.wait(), 30)
        return "ended in its own way"

    threading.Timer(0.05, stop.set).start()
    for _ in range(2):
        assert run(main, connection, stop=stop) == "ended in its own way"

    kept = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGALRM)}
    stop = stop_on_signals()
    try:
        threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)).start()
        assert run(main, connection, stop=stop) == "ended in its own way"
    finally:
        stop.end()
        for number, handler in kept.items():
            signal.signal(number, handler)
    assert stop.signal_name == "SIGTERM"
    assert signal.set_wakeup_fd(-1) == -1


def test_after_the_grace_a_statement_is_cancelled_and_a_settle_done_once_more(
    connection: Connection, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """What else waits ends the loop, with the signal as its reason; what must be done in a ``finally`` is."""
    stop = StopFlag()
    app.execute("LOCK TABLE mentors")
    done: list[str] = []

    def settle() -> None:
        done.append("begun")
        if len(done) == 2:
            app.rollback()
        connection.execute("SELECT FROM mentors")

    async def main(database: DatabaseThread) -> None:
        asyncio.get_running_loop().call_later(0.3, break_off, stop)
        try:
            await database.run(settle, settles=True)
            done.append("settled")
            await asyncio.sleep(60)
        finally:
            await database.run(lambda: connection.execute("SELECT FROM mentors"))
            done.append("released")

    with pytest.raises(StoppedBySignalError):
        run(main, connection, stop=stop)

    assert done == ["begun", "begun", "settled", "released"]


@pytest.mark.parametrize("ended_by", [StoppedBySignalError, DatabaseUnavailableError])
def test_a_database_that_stalls_is_hung_up_on(
    database_url: str, monkeypatch: pytest.MonkeyPatch, ended_by: type[Exception]
) -> None:
    """Its proxy keeps the connection open and swallows the cancellation as well; the next statement says the same."""
    monkeypatch.setattr(loop, "LONGEST_WORK_AFTER_DEADLINE_SECONDS", 0.2)
    stop, is_signal = StopFlag(), ended_by is StoppedBySignalError
    with StallingProxy(database_url) as proxy, database.connect(proxy.url) as connection:
        database.outlast_restarts(connection, stop=stop)

        async def main(thread: DatabaseThread) -> None:
            proxy.is_silent.set()
            if is_signal:
                asyncio.get_running_loop().call_later(0.1, break_off, stop)
            await thread.run(lambda: database.fetch_value(connection, "read_clock"), settles=True)

        with pytest.raises(ended_by, match="signal" if is_signal else "does not answer"):
            run(main, connection, stop=stop, deadline_seconds=60 if is_signal else 0.1)
        with pytest.raises(DatabaseUnavailableError, match="does not answer"):
            database.fetch_value(connection, "read_clock")


def test_a_statement_that_ends_by_itself_soon_after_the_deadline_is_let_end(connection: Connection) -> None:
    """What was delivered in time is settled."""

    async def main(database: DatabaseThread) -> object:
        return await database.run(lambda: connection.execute("SELECT 1 FROM pg_sleep(0.3)").fetchone())

    assert run(main, connection, deadline_seconds=0.05) == (1,)


def test_a_second_signal_breaks_nothing_while_the_loop_begins_or_ends(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No half-made task is left behind, of which asyncio complains on stderr; what is done is done, and returned."""
    stop = StopFlag()

    def in_the_first_step(_database: DatabaseThread) -> Coroutine[Any, Any, None]:
        break_off(stop)
        return asyncio.sleep(60)

    with pytest.raises(StoppedBySignalError):
        run(in_the_first_step, connection, stop=stop)

    async def is_left_over() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            break_off(stop)

    async def returns(_database: DatabaseThread) -> object:
        left_over = asyncio.ensure_future(is_left_over())
        await asyncio.sleep(0)
        return left_over

    stop = StopFlag()
    assert run(returns, connection, stop=stop)

    usual = asyncio.BaseEventLoop.shutdown_default_executor

    async def with_a_signal_in_the_last_turn(loop: asyncio.BaseEventLoop, *timeout: float) -> None:
        await usual(loop, *timeout)
        break_off(stop)

    monkeypatch.setattr(asyncio.BaseEventLoop, "shutdown_default_executor", with_a_signal_in_the_last_turn)
    stop = StopFlag()
    assert run(returns, connection, stop=stop)
    gc.collect()
