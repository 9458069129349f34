"""Calls against real sockets: over by the deadline whatever the server does, one kept connection, nothing followed."""

import asyncio
import contextlib
import gc
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from certjob.outbox.http_client import SURELY_NOT_SENT, HttpAnswer, HttpClient
from certjob.outbox.loop import NameLookups
from tests.support.portal_answers import answer, cut, drip, hang, html, ok, redirect, reset
from tests.support.portal_server import PortalServer

DEADLINE_SECONDS = 0.2
"""Short enough to wait for."""
MUCH_LATER_SECONDS = 5.0
"""By then a call has missed its deadline, however busy the machine is."""


class BlockingClient:
    """The client under test, in one event loop from the first call to the last."""

    def __init__(self, **settings: Any) -> None:
        self._client = HttpClient(**settings)
        self._runner = asyncio.Runner()
        self._runner.get_loop().set_default_executor(NameLookups())

    def request(self, method: str, url: httpx.URL | str, **named: Any) -> HttpAnswer:
        return self._runner.run(self._client.request(method, url, **named))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """A server on loopback."""
    with PortalServer() as server:
        yield server


@pytest.fixture
def client() -> Iterator[BlockingClient]:
    """The client under test."""
    with BlockingClient() as client:
        yield client


@pytest.fixture
def headers(portal: PortalServer) -> dict[str, str]:
    """What the server wants to see."""
    return {"Authorization": f"Bearer {portal.key}"}


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
    """The block ends with such a timeout, not before the deadline and not much later."""
    started = time.monotonic()
    with pytest.raises(kind):
        yield
    assert DEADLINE_SECONDS * 0.9 <= time.monotonic() - started < MUCH_LATER_SECONDS


def test_an_answer_has_status_headers_and_body(
    portal: PortalServer, client: BlockingClient, headers: dict[str, str]
) -> None:
    """Whatever the status: judging it is the caller's."""
    portal.then(answer(418, b"short and stout", headers={"X-Pot": "tea"}))

    received = client.request("POST", portal.url, headers=headers, json={"a": "å"})

    assert (received.status_code, received.body, received.body_is_cut) == (418, b"short and stout", False)
    assert received.headers["x-pot"] == "tea"
    assert portal.requests[0].json == {"a": "å"}
    assert portal.requests[0].headers["content-type"] == "application/json"
    assert portal.requests[0].headers["accept-encoding"] == "identity"


def test_one_connection_serves_many_calls(
    portal: PortalServer, client: BlockingClient, headers: dict[str, str]
) -> None:
    """Errors of the application do not cost a new one."""
    portal.then(ok(), html(500), redirect("http://127.0.0.1:9/"), ok())

    for _ in range(20):
        client.request("GET", portal.url, headers=headers)

    assert portal.connections_made == 1


@pytest.mark.parametrize("hang_up", [ok(then_close=True), ok(then_reset=True)], ids=["closed", "reset"])
def test_a_connection_dropped_while_idle_is_replaced_unnoticed(
    hang_up: Callable[..., None], portal: PortalServer, client: BlockingClient, headers: dict[str, str]
) -> None:
    """Servers close idle connections; that is no failure of the next call."""
    portal.then(hang_up)
    client.request("GET", portal.url, headers=headers)
    portal.wait_until(lambda: portal.open_connections == 0)

    assert client.request("GET", portal.url, headers=headers).status_code == 200
    assert portal.connections_made == 2


def test_a_request_that_arrived_is_never_sent_twice(
    portal: PortalServer, client: BlockingClient, headers: dict[str, str]
) -> None:
    """A kept connection that breaks under a request: an error, and the retry is the caller's decision."""
    portal.then(ok(), reset())
    client.request("GET", portal.url, headers=headers)

    with pytest.raises(httpx.TransportError) as raised:
        client.request("GET", portal.url, headers=headers)

    assert not isinstance(raised.value, SURELY_NOT_SENT)
    assert len(portal.requests) == 2
    assert client.request("GET", portal.url, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "behaviour",
    [hang(), drip(part="headers", every_seconds=0.01), drip(part="body", every_seconds=0.01)],
    ids=["silence", "dripping headers", "dripping body"],
)
def test_a_slow_answer_ends_with_the_deadline(
    behaviour: Callable[..., None], portal: PortalServer, client: BlockingClient, headers: dict[str, str]
) -> None:
    """Though each single read succeeds well within it; and the next call gets a connection and time of its own."""
    portal.then(behaviour)

    with over_in_time(httpx.ReadTimeout):
        client.request("GET", portal.url, headers=headers, deadline_seconds=DEADLINE_SECONDS)

    assert client.request("GET", portal.url, headers=headers).status_code == 200


def test_no_time_at_all_is_a_timeout(portal: PortalServer, client: BlockingClient, headers: dict[str, str]) -> None:
    """A socket would take a timeout of 0 for "do not block"."""
    client.request("GET", portal.url, headers=headers)

    with pytest.raises(httpx.TimeoutException):
        client.request("GET", portal.url, headers=headers, deadline_seconds=0)

    assert len(portal.requests) == 1


def test_a_server_that_does_not_read_ends_with_the_deadline(client: BlockingClient) -> None:
    """The writes of a large body count, too."""
    with socket.create_server(("127.0.0.1", 0)) as never_accepts, over_in_time(httpx.ReadTimeout):
        port = never_accepts.getsockname()[1]
        client.request("POST", f"http://127.0.0.1:{port}/", json="x" * 30_000_000, deadline_seconds=DEADLINE_SECONDS)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_tls_handshake_that_drips_ends_with_the_deadline(client: BlockingClient) -> None:
    """Each byte arrives in time, the handshake never ends."""
    ended = threading.Event()

    def drip_handshake(connection: socket.socket) -> None:
        connection.sendall(b"\x16\x03\x03\x40\x00")  # a handshake record of 16 KiB is to come
        while not ended.wait(0.01):
            connection.sendall(b"\x02")

    with raw_server(drip_handshake) as port:
        with over_in_time(httpx.ConnectTimeout):
            client.request("GET", f"https://127.0.0.1:{port}/", deadline_seconds=DEADLINE_SECONDS)
        ended.set()
    gc.collect()  # httpcore leaves the socket of a cancelled handshake to it


def test_a_name_lookup_that_hangs_ends_with_the_deadline(
    client: BlockingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's resolver takes no timeout."""
    resolved = threading.Event()

    def look_up(*_arguments: object, **_options: object) -> list[object]:
        resolved.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with over_in_time(httpx.ConnectTimeout):
        client.request("GET", "http://portal.example/", deadline_seconds=DEADLINE_SECONDS)
    resolved.set()


def test_a_second_address_is_tried_when_the_first_is_dead(
    portal: PortalServer, client: BlockingClient, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with two addresses of which one is down."""
    url = httpx.URL(portal.url)
    real = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in (_unused_port(), url.port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: real)

    received = client.request("GET", url.copy_with(host="portal.example"), headers=headers)

    assert received.status_code == 200
    assert portal.requests[0].headers["host"] == f"portal.example:{url.port}"


def test_a_body_beyond_the_limit_is_cut(portal: PortalServer, client: BlockingClient, headers: dict[str, str]) -> None:
    """The status and the beginning are there; the rest is not waited for, and does not disturb the next call."""
    portal.then(answer(404, b"x" * 5_000_000), answer(200, b"y" * 1000))

    received = client.request("GET", portal.url, headers=headers, max_body_bytes=1000)
    following = client.request("GET", portal.url, headers=headers, max_body_bytes=1000)

    assert (received.status_code, received.body, received.body_is_cut) == (404, b"x" * 1000, True)
    assert (following.body, following.body_is_cut) == (b"y" * 1000, False)


def test_a_redirect_is_not_followed(portal: PortalServer, client: BlockingClient, headers: dict[str, str]) -> None:
    """The key stays here."""
    with PortalServer() as elsewhere:
        portal.then(redirect(elsewhere.url, status=307))
        received = client.request("POST", portal.url, headers=headers, json={})

    assert received.status_code == 307
    assert elsewhere.connections_made == 0


def test_cookies_are_not_kept(portal: PortalServer, client: BlockingClient, headers: dict[str, str]) -> None:
    """Each call is the same as the first."""
    portal.then(answer(200, headers={"Set-Cookie": "session=1"}))

    for _ in range(2):
        client.request("GET", portal.url, headers=headers)

    assert "cookie" not in portal.requests[1].headers


def test_no_proxy_is_taken_from_the_environment(
    portal: PortalServer, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable left over in a shell must not send the key through somebody else's machine."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{_unused_port()}")

    with BlockingClient() as client:
        assert client.request("GET", portal.url, headers=headers).status_code == 200


@pytest.mark.parametrize("behaviour", [cut(), reset()], ids=["cut answer", "reset"])
def test_a_broken_answer_is_a_transport_error(
    behaviour: Callable[..., None], portal: PortalServer, client: BlockingClient, headers: dict[str, str]
) -> None:
    """Half an answer is none."""
    portal.then(behaviour)

    with pytest.raises(httpx.TransportError) as raised:
        client.request("GET", portal.url, headers=headers)

    assert not isinstance(raised.value, httpx.TimeoutException)


def answer_like_a_mail_server(connection: socket.socket) -> None:
    connection.recv(65536)  # closed with something unread, the connection would be reset
    connection.sendall(b"220 mail.example ESMTP\r\n")


def test_no_server_no_http_and_no_such_scheme_are_transport_errors(client: BlockingClient) -> None:
    """Each by httpx's own name."""
    with pytest.raises(httpx.ConnectError, match="Connection refused"):
        client.request("GET", f"http://127.0.0.1:{_unused_port()}/")
    with pytest.raises(httpx.UnsupportedProtocol):
        client.request("GET", "ftp://127.0.0.1/")
    with raw_server(answer_like_a_mail_server) as port, pytest.raises(httpx.RemoteProtocolError):
        client.request("GET", f"http://127.0.0.1:{port}/")


def test_a_name_that_no_dns_allows_is_a_connect_error(client: BlockingClient) -> None:
    """Python's resolver raises a UnicodeError for it."""
    with pytest.raises(httpx.ConnectError):
        client.request("GET", f"http://{'a' * 70}.example/")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that nobody signed, and its key, in one file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, pem = tmp_path / "key.pem", tmp_path / "localhost.pem"
    what = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    where = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(["openssl", "req", "-x509", *what.split(), *where], check=True, capture_output=True)
    pem.write_text(pem.read_text() + key.read_text())
    return pem


def test_tls_is_verified(certificate: Path) -> None:
    """A trusted certificate serves; one that nobody signed is a connect error, before any byte of the request."""
    served: list[bytes] = []
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(certificate)

    def serve(connection: socket.socket) -> None:
        with server_side.wrap_socket(connection, server_side=True) as secured:
            for _ in range(2):
                served.append(secured.recv(65536))
                secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    trusting = ssl.create_default_context(cafile=str(certificate))
    with raw_server(serve) as port, BlockingClient(ssl_context=trusting) as client:
        bodies = [client.request("GET", f"https://localhost:{port}/").body for _ in range(2)]
    assert bodies == [b"ok", b"ok"]

    served.clear()
    with (
        raw_server(serve) as port,
        BlockingClient() as client,
        pytest.raises(httpx.ConnectError, match="certificate verify failed"),
    ):
        client.request("GET", f"https://localhost:{port}/")
    assert served == []


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
