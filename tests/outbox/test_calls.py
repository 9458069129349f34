"""Calls end in time after a signal, and a hanging name lookup does not delay others."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import StoppedBySignalError
from certjob.outbox import calls as outside
from certjob.outbox.calls import Calls
from certjob.stopping import STOP_SIGNALS, Interrupted, StopFlag, stop_on_signals


@pytest.fixture
def stop() -> Iterator[StopFlag]:
    """A stop flag with signal handlers."""
    kept = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGALRM)}
    flag = stop_on_signals()
    yield flag
    flag.end()
    for number, handler in kept.items():
        signal.signal(number, handler)


def after(seconds: float, number: signal.Signals = signal.SIGTERM) -> None:
    threading.Timer(seconds, lambda: os.kill(os.getpid(), number)).start()


def test_hanging_name_lookup_delays_no_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other lookups nor the exit wait for it."""
    let_go = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_arguments: host == "fine.example" or let_go.wait(60))

    async def look_up() -> object:
        loop = asyncio.get_running_loop()
        hanging = [asyncio.ensure_future(loop.getaddrinfo("hangs.example", 80)) for _ in range(8)]
        await asyncio.sleep(0)  # they begin first
        found = await loop.getaddrinfo("fine.example", 80)
        assert not any(task.done() for task in hanging)
        return found

    started = time.monotonic()
    with Calls(StopFlag()) as calls:
        assert calls.make(look_up())
    took = time.monotonic() - started
    let_go.set()

    assert took < 10


def test_work_has_seven_and_a_half_seconds_after_a_signal(stop: StopFlag, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call has a second less, which remains for the database. Another wait is interrupted by the alarm."""
    now, ahead, ended = time.monotonic, [0.0], list[float]()
    monkeypatch.setattr(time, "monotonic", lambda: now() + ahead[0])

    async def hang() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        ahead[0] = 5
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(stop.seconds_since_set)

    with pytest.raises(StoppedBySignalError), Calls(stop) as calls:
        calls.make(hang())

    assert 6.5 <= ended[0] < 7.5
    assert 7 < signal.getitimer(signal.ITIMER_REAL)[0] + stop.seconds_since_set - ahead[0] <= 7.6


@pytest.mark.parametrize("signals", [1, 2])
def test_hanging_call_is_cancelled_and_the_client_closed(
    stop: StopFlag, monkeypatch: pytest.MonkeyPatch, signals: int
) -> None:
    """This happens after the grace period, or at once after a second signal."""
    monkeypatch.setattr(outside, "GRACE_SECONDS", 1.2 if signals == 1 else 60.0)
    happened: list[str] = []

    @asynccontextmanager
    async def client() -> AsyncIterator[None]:
        yield
        happened.append("closed")

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            happened.append("cancelled")

    for number in range(signals):
        after(0.1 + 0.1 * number, STOP_SIGNALS[number])
    with pytest.raises(StoppedBySignalError), Calls(stop) as calls, calls.opened(client()):
        calls.make(hang())

    assert happened == ["cancelled", "closed"]


def test_second_signal_interrupts_a_statement_between_calls(
    stop: StopFlag, connection: Connection, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """The connection can still store the end of the run."""

    async def call() -> None: ...

    app.execute("LOCK TABLE mentors")
    after(0.1)
    after(0.2, signal.SIGINT)
    with Calls(stop) as calls:
        calls.make(call())
        with pytest.raises(Interrupted):
            connection.execute("SELECT FROM mentors")

    assert database.clock(connection)
