"""Calls against real sockets: over by the deadline whatever the server does, and nothing kept, followed or trusted.

What a broken or a missing answer comes to is told in tests/portal/test_hlf_dynamics.py.
"""

import contextlib
import gc
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from certjob.outbox import http_client
from certjob.outbox.calls import run_alone
from certjob.outbox.http_client import SURELY_NOT_SENT, HttpAnswer, HttpClient
from tests.support.portal_answers import answer, drip, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE

DEADLINE_SECONDS = 0.4


def calls(*urls: str, method: str = "GET", **named: Any) -> list[HttpAnswer]:
    """What calls in a row bring, by one client; ``named`` goes along with each."""

    async def call() -> list[HttpAnswer]:
        async with HttpClient() as one:
            return [await one.request(method, url, **named) for url in urls]

    return run_alone(call())


def get(portal: PortalServer, times: int = 1, **named: Any) -> list[HttpAnswer]:
    return calls(*[portal.url] * times, headers={"Authorization": f"Bearer {portal.key}"}, **named)


@contextlib.contextmanager
def raw_server(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield the port of a server that does this with its first connection, and takes no other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as connection:
                behave(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@contextlib.contextmanager
def over_in_time(kind: type[httpx.TimeoutException]) -> Iterator[None]:
    """The block ends with such a timeout, not before the deadline and not much later, however busy the machine is."""
    started = time.monotonic()
    with pytest.raises(kind):
        yield
    assert DEADLINE_SECONDS * 0.9 <= time.monotonic() - started < 10


def test_an_answer_has_status_headers_and_body(portal: PortalServer) -> None:
    """Whatever the status: judging it is the caller's. Cookies are not kept; what is beyond the limit is cut."""
    portal.then(answer(418, b"tea", headers={"X-Pot": "tea", "Set-Cookie": "session=1"}), answer(404, b"x" * 5_000_000))
    portal.default = answer(200, b"y" * 1000)

    first, second, third = get(portal, 3, method="POST", json={"a": "å"}, max_body_bytes=1000)

    assert (first.status_code, first.body, first.headers["x-pot"]) == (418, b"tea", "tea")
    assert [(each.status_code, each.body) for each in (second, third)] == [(404, b"x" * 1000), (200, b"y" * 1000)]
    sent = portal.requests[1]
    assert (sent.json, sent.headers["content-type"]) == ({"a": "å"}, "application/json")
    assert (sent.headers["accept-encoding"], sent.headers.get("cookie")) == ("identity", None)


def test_a_request_that_arrived_is_never_sent_twice(portal: PortalServer) -> None:
    """A kept connection that breaks under a request: an error, and the retry is the caller's decision."""
    portal.then(ok(), reset())

    with pytest.raises(httpx.TransportError) as raised:
        get(portal, 2)

    assert not isinstance(raised.value, (*SURELY_NOT_SENT, httpx.TimeoutException))
    assert len(portal.requests) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_call_is_over_by_its_deadline(portal: PortalServer) -> None:
    """A server drips headers, body or handshake, each byte well within it, or reads nothing of a large body."""
    for part in ("headers", "body"):
        portal.then(drip(part=part, every_seconds=0.01))
        with over_in_time(httpx.ReadTimeout):
            get(portal, deadline_seconds=DEADLINE_SECONDS)
    with pytest.raises(httpx.TimeoutException):
        get(portal, deadline_seconds=0)  # a socket would take that for "do not block"
    assert len(portal.requests) == 2

    with socket.create_server(("127.0.0.1", 0)) as never_accepts, over_in_time(httpx.TimeoutException):
        url = f"http://127.0.0.1:{never_accepts.getsockname()[1]}/"
        calls(url, method="POST", json="x" * 30_000_000, deadline_seconds=DEADLINE_SECONDS)

    ended = threading.Event()

    def drip_handshake(connection: socket.socket) -> None:
        connection.sendall(b"\x16\x03\x03\x40\x00")  # a handshake record of 16 KiB is to come
        while not ended.wait(0.01):
            connection.sendall(b"\x02")

    with raw_server(drip_handshake) as port:
        with over_in_time(httpx.ConnectTimeout):
            calls(f"https://127.0.0.1:{port}/", deadline_seconds=DEADLINE_SECONDS)
        ended.set()
    gc.collect()  # httpcore leaves the socket of a cancelled handshake to it


def test_what_cannot_be_called_is_a_transport_error_and_no_proxy_is_taken_from_the_environment(
    portal: PortalServer, port_of_nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a name that no DNS allows, Python's resolver raises a UnicodeError."""
    nobody = f"http://127.0.0.1:{port_of_nobody}/"
    for url, kind, words in (
        (nobody, httpx.ConnectError, "Connection refused"),
        ("ftp://127.0.0.1/", httpx.UnsupportedProtocol, "protocol"),
        (f"http://{'a' * 70}.example/", httpx.ConnectError, "."),
    ):
        with pytest.raises(kind, match=words):
            calls(url)

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nobody)  # left over in a shell, it would send the key through somebody's machine
    assert get(portal)[0].status_code == 200


def test_tls_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that SSL_CERT_FILE names serves; one that nobody signed is a connect error before anything is sent."""
    served: list[bytes] = []
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(CERTIFICATE)

    def serve(connection: socket.socket) -> None:
        with server_side.wrap_socket(connection, server_side=True) as secured:
            served.append(secured.recv(65536))
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    http_client._verifying_context.cache_clear()
    with raw_server(serve) as port:
        assert calls(f"https://localhost:{port}/")[0].body == b"ok"

    monkeypatch.delenv("SSL_CERT_FILE")
    http_client._verifying_context.cache_clear()
    with raw_server(serve) as port, pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        calls(f"https://localhost:{port}/")
    assert len(served) == 1
