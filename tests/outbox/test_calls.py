"""Calls to the outside: an end in time whatever hangs, and nothing that a signal could break inside the loop."""

import asyncio
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

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
    """A flag that signals set."""
    kept = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGALRM)}
    flag = stop_on_signals()
    yield flag
    flag.end()
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in kept.items():
        signal.signal(number, handler)


def after(seconds: float, number: signal.Signals = signal.SIGTERM) -> None:
    threading.Timer(seconds, lambda: os.kill(os.getpid(), number)).start()


def test_a_name_lookup_that_hangs_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither other lookups, nor the end."""
    let_go = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_arguments: host == "fine.example" or let_go.wait(60))

    async def look_up() -> object:
        loop = asyncio.get_running_loop()
        hanging = [asyncio.ensure_future(loop.getaddrinfo("hangs.example", 80)) for _ in range(8)]
        await asyncio.sleep(0.05)
        found = await loop.getaddrinfo("fine.example", 80)
        assert not any(task.done() for task in hanging)
        return found

    started = time.monotonic()
    try:
        with Calls(StopFlag()) as calls:
            assert calls.make(look_up())
    finally:
        let_go.set()
    assert time.monotonic() - started < 10


def test_a_call_that_ends_within_the_grace_returns_and_its_waits_are_cut_short(stop: StopFlag) -> None:
    """A signal wakes what waits between two tries; what is under way goes on."""

    async def call() -> str:
        await asyncio.wait_for(calls.stopped.wait(), 30)
        await asyncio.sleep(0.3)
        return "ended in its own way"

    after(0.05)
    with Calls(stop) as calls:
        for _ in range(2):  # one that came before is seen, too
            assert calls.make(call()) == "ended in its own way"
    assert stop.signal_name == "SIGTERM"


@pytest.mark.parametrize("signals", [1, 2])
def test_what_does_not_end_is_cancelled_and_the_client_still_closed(
    stop: StopFlag, monkeypatch: pytest.MonkeyPatch, signals: int
) -> None:
    """When the grace is over, or at once at a second signal; asyncio has nothing to complain of."""
    monkeypatch.setattr(outside, "GRACE_SECONDS", 1.3 if signals == 1 else 60.0)
    happened: list[str] = []

    class Client:
        async def __aenter__(self) -> "Client":
            return self

        async def __aexit__(self, *_: object) -> None:
            happened.append("closed")

        async def hang(self) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                happened.append("cancelled")

    for number in range(signals):
        after(0.1 + 0.2 * number, STOP_SIGNALS[number])
    started = time.monotonic()
    with pytest.raises(StoppedBySignalError), Calls(stop) as calls, calls.opened(Client()) as client:
        calls.make(client.hang())

    assert (happened, time.monotonic() - started < 10) == (["cancelled", "closed"], True)
    gc.collect()


def test_between_calls_a_second_signal_ends_a_statement(
    stop: StopFlag, connection: Connection, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """As everywhere else; the connection is good for noting the end of the run."""

    async def call() -> None: ...

    app.execute("LOCK TABLE mentors")
    after(0.1)
    after(0.3, signal.SIGINT)
    with Calls(stop) as calls:
        calls.make(call())
        with pytest.raises(Interrupted):
            connection.execute("SELECT FROM mentors")

    assert database.clock(connection)
