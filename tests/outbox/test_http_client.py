"""Calls against real sockets: over by the deadline whatever the server does, and nothing sent twice or followed.

What a broken or a missing answer comes to is told in tests/portal/test_hlf_dynamics.py.
"""

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
from tests.support.portal_answers import answer, drip, ok, reset
from tests.support.portal_server import PortalServer

DEADLINE_SECONDS = 0.2
MUCH_LATER_SECONDS = 5.0
"""By then a call has missed its deadline, however busy the machine is."""


class BlockingClient:
    """The client under test, in one event loop from the first call to the last."""

    def __init__(self, **settings: Any) -> None:
        self._client = HttpClient(**settings)
        self._runner = asyncio.Runner()
        self._runner.get_loop().set_default_executor(NameLookups())

    def get(self, target: PortalServer | str, *, method: str = "GET", **named: Any) -> HttpAnswer:
        url = target
        if isinstance(target, PortalServer):
            url, named["headers"] = target.url, {"Authorization": f"Bearer {target.key}"}
        return self._runner.run(self._client.request(method, str(url), **named))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server


@pytest.fixture
def client() -> Iterator[BlockingClient]:
    with BlockingClient() as client:
        yield client


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


def test_an_answer_has_status_headers_and_body(portal: PortalServer, client: BlockingClient) -> None:
    """Whatever the status: judging it is the caller's. Cookies are not kept; what is beyond the limit is cut."""
    portal.then(
        answer(418, b"short and stout", headers={"X-Pot": "tea", "Set-Cookie": "session=1"}),
        answer(404, b"x" * 5_000_000),
        answer(200, b"y" * 1000),
    )

    received = client.get(portal, method="POST", json={"a": "å"})
    beyond, exactly = (client.get(portal, max_body_bytes=1000) for _ in range(2))

    assert (received.status_code, received.body, received.body_is_cut) == (418, b"short and stout", False)
    assert received.headers["x-pot"] == "tea"
    assert portal.requests[0].json == {"a": "å"}
    assert portal.requests[0].headers["content-type"] == "application/json"
    assert portal.requests[0].headers["accept-encoding"] == "identity"
    assert "cookie" not in portal.requests[1].headers
    assert (beyond.status_code, beyond.body, beyond.body_is_cut) == (404, b"x" * 1000, True)
    assert (exactly.body, exactly.body_is_cut) == (b"y" * 1000, False)


def test_a_request_that_arrived_is_never_sent_twice(portal: PortalServer, client: BlockingClient) -> None:
    """A kept connection that breaks under a request: an error, and the retry is the caller's decision."""
    portal.then(ok(), reset())
    client.get(portal)

    with pytest.raises(httpx.TransportError) as raised:
        client.get(portal)

    assert not isinstance(raised.value, (*SURELY_NOT_SENT, httpx.TimeoutException))
    assert len(portal.requests) == 2
    assert client.get(portal).status_code == 200


def test_an_answer_that_drips_ends_with_the_deadline(portal: PortalServer, client: BlockingClient) -> None:
    """Though each single read succeeds well within it; and the next call gets a connection and time of its own."""
    for part in ("headers", "body"):
        portal.then(drip(part=part, every_seconds=0.01))
        with over_in_time(httpx.ReadTimeout):
            client.get(portal, deadline_seconds=DEADLINE_SECONDS)
        assert client.get(portal).status_code == 200

    with pytest.raises(httpx.TimeoutException):
        client.get(portal, deadline_seconds=0)  # a socket would take that for "do not block"
    assert len(portal.requests) == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_server_that_reads_nothing_or_drips_its_handshake_ends_with_the_deadline(client: BlockingClient) -> None:
    """The writes of a large body count, too; each byte of the handshake arrives in time, and it never ends."""
    with socket.create_server(("127.0.0.1", 0)) as never_accepts, over_in_time(httpx.ReadTimeout):
        url = f"http://127.0.0.1:{never_accepts.getsockname()[1]}/"
        client.get(url, method="POST", json="x" * 30_000_000, deadline_seconds=DEADLINE_SECONDS)
    ended = threading.Event()

    def drip_handshake(connection: socket.socket) -> None:
        connection.sendall(b"\x16\x03\x03\x40\x00")  # a handshake record of 16 KiB is to come
        while not ended.wait(0.01):
            connection.sendall(b"\x02")

    with raw_server(drip_handshake) as port:
        with over_in_time(httpx.ConnectTimeout):
            client.get(f"https://127.0.0.1:{port}/", deadline_seconds=DEADLINE_SECONDS)
        ended.set()
    gc.collect()  # httpcore leaves the socket of a cancelled handshake to it


def test_what_cannot_be_called_is_a_transport_error_and_no_proxy_is_taken_from_the_environment(
    portal: PortalServer, client: BlockingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a name that no DNS allows, Python's resolver raises a UnicodeError."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with pytest.raises(httpx.ConnectError, match="Connection refused"):
        client.get(nobody)
    with pytest.raises(httpx.UnsupportedProtocol):
        client.get("ftp://127.0.0.1/")
    with pytest.raises(httpx.ConnectError):
        client.get(f"http://{'a' * 70}.example/")

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, nobody)  # left over in a shell, it would send the key through somebody's machine
    with BlockingClient() as client_of_that_shell:
        assert client_of_that_shell.get(portal).status_code == 200


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
        bodies = [client.get(f"https://localhost:{port}/").body for _ in range(2)]
    assert bodies == [b"ok", b"ok"]

    served.clear()
    with (
        raw_server(serve) as port,
        BlockingClient() as client,
        pytest.raises(httpx.ConnectError, match="certificate verify failed"),
    ):
        client.get(f"https://localhost:{port}/")
    assert served == []
