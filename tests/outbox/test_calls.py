"""Calls end in time after a signal. HTTP calls: deadlines, no cookies, no proxies, verified TLS."""

import asyncio
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psycopg
import pytest
from pytest_httpserver import HTTPServer

from certjob import database
from certjob.database import Connection
from certjob.errors import StoppedBySignalError
from certjob.outbox import calls as outside
from certjob.outbox import http_client
from certjob.outbox.calls import Calls, run_alone
from certjob.outbox.http_client import HttpAnswer, HttpClient
from certjob.stopping import STOP_SIGNALS, Interrupted, StopFlag, stop_on_signals
from tests.support.portal_answers import answer, drip, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE


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


def calls(*urls: str, method: str = "GET", **named: Any) -> list[HttpAnswer]:
    """Return the answers to calls of one client, made one after the other."""

    async def call() -> list[HttpAnswer]:
        async with HttpClient() as one:
            return [await one.request(method, url, **named) for url in urls]

    return run_alone(call())


def get(portal: PortalServer, times: int = 1, **named: Any) -> list[HttpAnswer]:
    return calls(*[portal.url] * times, headers={"Authorization": f"Bearer {portal.key}"}, **named)


def test_answer_has_status_headers_and_limited_body(portal: PortalServer) -> None:
    """Every status is an answer. Cookies are not kept, and no compression is requested."""
    portal.then(answer(418, b"tea", headers={"X-Pot": "tea", "Set-Cookie": "session=1"}), answer(404, b"x" * 5_000_000))

    first, second = get(portal, 2, method="POST", json={"a": "å"}, max_body_bytes=1000)

    assert (first.status_code, first.body, first.headers["x-pot"]) == (418, b"tea", "tea")
    assert (second.status_code, second.body) == (404, b"x" * 1000)
    _, request = portal.requests
    assert (request.json, request.headers["content-type"]) == ({"a": "å"}, "application/json")
    assert (request.headers["accept-encoding"], request.headers.get("cookie")) == ("identity", None)


def test_request_is_never_sent_twice(portal: PortalServer) -> None:
    """Not even if it breaks a kept connection, here in the second call. The caller decides about a retry."""
    portal.then(ok(), reset())

    with pytest.raises(httpx.TransportError) as raised:
        get(portal, 2)

    assert not isinstance(raised.value, httpx.ConnectError | httpx.ConnectTimeout)
    assert len(portal.requests) == 2


def test_call_ends_by_its_deadline_although_bytes_arrive(portal: PortalServer) -> None:
    """The server sends the body of its answer byte by byte."""
    portal.then(drip(every_seconds=0.01))
    started = time.monotonic()

    with pytest.raises(httpx.ReadTimeout):
        get(portal, deadline_seconds=0.5)

    assert 0.45 <= time.monotonic() - started < 10


def test_proxies_of_the_environment_are_ignored(
    portal: PortalServer, port_of_nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would receive the key."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port_of_nobody}/")

    assert get(portal)[0].status_code == 200


def test_unreachable_server_is_an_error_in_the_words_of_the_system(port_of_nobody: int) -> None:
    with pytest.raises(httpx.ConnectError, match=r"^Connection refused$"):
        calls(f"http://127.0.0.1:{port_of_nobody}/")


def test_tls_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown certificate is a connection error, and the request is not sent."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(CERTIFICATE)
    with HTTPServer(host="localhost", ssl_context=server_side) as server:
        server.expect_request("/").respond_with_data("ok")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        http_client.verifying_context.cache_clear()
        assert calls(server.url_for("/"))[0].body == b"ok"

        monkeypatch.delenv("SSL_CERT_FILE")
        http_client.verifying_context.cache_clear()
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            calls(server.url_for("/"))
        assert len(server.log) == 1
