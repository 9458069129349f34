"""HTTP calls that are over by a deadline, whatever the server does.

httpx and httpcore limit each socket operation, so a server that sends one byte now and then can hold a caller for
hours. Here every operation of a call (name lookup, connect, TLS handshake, each write, each read) gets only what the
call has left. The errors are httpx's own: ``httpx.TimeoutException`` for the deadline, ``httpx.TransportError`` above
it for all that goes wrong on the way.
"""

import select
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import httpcore
import httpx

IDLE_SECONDS = 2.0
"""A connection unused for longer is not used again: shorter than the 5 s after which many servers close it, so that a
request seldom meets a connection that is just being closed."""

_HTTPX_ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """An answer whose headers arrived whole, and its body up to the limit."""

    status_code: int
    headers: httpx.Headers
    body: bytes
    """At most ``max_body_bytes``; still coded if the server chose a Content-Encoding that was not asked for."""
    body_is_cut: bool
    """Whether the body went on beyond the limit."""


class DeadlineClient:
    """An HTTP/1.1 client that keeps one connection alive; one client per thread.

    It takes no proxy from the environment, follows no redirect (which would carry a key elsewhere), keeps no cookie and
    verifies TLS certificates, by ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` where these are set.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self._deadline = _Deadline()
        self._in_use = threading.Lock()
        self._pool = httpcore.ConnectionPool(
            ssl_context=ssl_context or _verifying_context(),
            max_connections=1,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=_DeadlineBackend(self._deadline),
        )

    def request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        json: Any = None,
        deadline_seconds: float = 30,
        max_body_bytes: int = 64 * 1024,
    ) -> HttpAnswer:
        """Make one call and return its answer, whatever its status, within ``deadline_seconds``.

        A connection that the server closed while it was idle is replaced unnoticed. A request is never sent twice: once
        it may have arrived, a broken connection is an error. Raises ``httpx.TimeoutException`` when the time is over,
        another ``httpx.TransportError`` when the call fails, ``httpx.InvalidURL``, and RuntimeError when another thread
        is in a call of this client.
        """
        request = httpx.Request(
            method, url, headers={"Accept-Encoding": "identity", **(headers or {})}, content=content, json=json
        )
        if not self._in_use.acquire(blocking=False):
            message = "a DeadlineClient belongs to one thread; make another client for this one"
            raise RuntimeError(message)
        try:
            self._deadline.start(deadline_seconds)
            return self._send(request, max_body_bytes=max_body_bytes)
        except tuple(_HTTPX_ERRORS) as error:
            raise _HTTPX_ERRORS[type(error)](str(error)) from error
        finally:
            self._in_use.release()

    def _send(self, request: httpx.Request, *, max_body_bytes: int) -> HttpAnswer:
        url = request.url
        response = self._pool.handle_request(
            httpcore.Request(
                request.method,
                httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
                headers=request.headers.raw,
                content=request.read(),
            )
        )
        body = b""
        try:
            for part in response.iter_stream():
                body += part
                if len(body) > max_body_bytes:
                    break
        finally:
            response.close()  # an unread rest closes the connection, too
        return HttpAnswer(
            status_code=response.status,
            headers=httpx.Headers(response.headers),
            body=body[:max_body_bytes],
            body_is_cut=len(body) > max_body_bytes,
        )

    def close(self) -> None:
        """Close the connection; the client may be used again and then opens another."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@cache
def _verifying_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class _Deadline:
    """The moment at which a client's present call must be over; its connection outlives it."""

    def __init__(self) -> None:
        self._ends_at = 0.0

    def start(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds

    def seconds_left(self) -> float:
        """Return more than zero, or raise TimeoutError: a socket takes a timeout of 0 for "do not block"."""
        seconds = self._ends_at - time.monotonic()
        if seconds <= 0:
            message = "the time for the call is over"
            raise TimeoutError(message)
        return seconds


class _DeadlineStream(httpcore.NetworkStream):
    """A connected socket whose every operation gets what the present call has left.

    httpcore's own ``timeout`` arguments are not looked at: no call sets them. An SSL socket takes its timeout for the
    whole of one operation (``_ssl.c``), the handshake too, so that a peer cannot drip there either.
    """

    def __init__(self, connection: socket.socket, deadline: _Deadline) -> None:
        self._socket = connection
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._socket.settimeout(self._deadline.seconds_left())
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        unsent = memoryview(buffer)
        try:
            while unsent:
                self._socket.settimeout(self._deadline.seconds_left())
                unsent = unsent[self._socket.send(unsent) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._socket.settimeout(self._deadline.seconds_left())
            self._socket = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except TimeoutError as error:
            self.close()
            raise httpcore.ConnectTimeout(str(error)) from error
        except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
            self.close()
            raise httpcore.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        """Answer what httpcore asks: is the connection readable (when idle that means closed), is it TLS."""
        if info == "is_readable":
            return _is_readable(self._socket)
        if info == "ssl_object" and isinstance(self._socket, ssl.SSLSocket):
            return self._socket
        return None

    def close(self) -> None:
        self._socket.close()


class _DeadlineBackend(httpcore.NetworkBackend):
    """Opens connections within what the present call has left, the name lookup included."""

    def __init__(self, deadline: _Deadline) -> None:
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = _look_up(host, port=port, deadline=self._deadline)
            return _DeadlineStream(_connect(addresses, deadline=self._deadline), self._deadline)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error


_Address = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]


def _look_up(host: str, *, port: int, deadline: _Deadline) -> list[_Address]:
    # getaddrinfo takes no timeout, and a dead name server holds it for half a minute: the thread is left to itself.
    found: SimpleQueue[list[_Address] | Exception] = SimpleQueue()

    def look_up() -> None:
        try:
            found.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label longer than DNS allows
            found.put(error)

    threading.Thread(target=look_up, name="name-lookup", daemon=True).start()
    try:
        answer = found.get(timeout=deadline.seconds_left())
    except Empty:
        message = "the name lookup took too long"
        raise TimeoutError(message) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _connect(addresses: list[_Address], *, deadline: _Deadline) -> socket.socket:
    # Each address gets its share of the time, so that a dead first one does not use up what a good second one needs.
    failure = OSError("the host has no address")
    for position, (family, kind, protocol, _, address) in enumerate(addresses):
        share_seconds = deadline.seconds_left() / (len(addresses) - position)
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(share_seconds)
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def _is_readable(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
