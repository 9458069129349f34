"""A real HTTP server on loopback that stands in for the portal's Edge Function, and misbehaves as told.

    with PortalServer([error(503, "dynamics_unavailable", retry_after="2"), reset(), ok()]) as portal:
        ...                                # calls to portal.url with the key portal.key
        assert portal.visible == {contact_id: False}
        assert portal.overlaps == []       # never two open calls for one contact

Each request takes the next behaviour of the script; when there is none left, ``portal.default``. The script may also
be a function from the request to a behaviour. The behaviours are in ``tests.support.portal_answers``. Like the
function, the server looks at the key first: a wrong one is answered with 401 and takes nothing from the script.
Requests are recorded when they have arrived whole.
"""

import contextlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, error, ok

Script = Iterable[Behaviour] | Callable[[PortalRequest], Behaviour]


@dataclass
class PortalServer:
    """The server; a context manager. Its records may be read at any time."""

    script: Script = ()
    key: str = "planted-portal-key"
    """What the bearer must be."""
    default: Behaviour = field(default_factory=ok)
    """What to do when the script is over; may be set while the server runs."""
    visible: dict[UUID, bool] = field(default_factory=dict)
    """What the portal shows: the last value done for each contact."""
    requests: list[PortalRequest] = field(default_factory=list)
    """Everything that arrived, in order."""
    overlaps: list[tuple[PortalRequest, PortalRequest]] = field(default_factory=list)
    """An unanswered request whose caller was still there, and the one that came in for the same contact."""
    peak_in_flight: int = 0
    """The most requests that were unanswered at once."""
    connections_made: int = 0
    """Connections accepted so far."""
    port: int = 0
    """0: any free one; it stays the same, so that a test can let the server go and come back."""

    def __post_init__(self) -> None:
        self.decide = self.script if callable(self.script) else None
        self._steps: deque[Behaviour] = deque(() if callable(self.script) else self.script)
        self._in_flight: list[Exchange] = []
        self._connections: dict[socket.socket, threading.Thread] = {}
        self.changed = threading.Condition()
        """Guards all records; notified at every change of ``requests`` and of the open connections."""
        self.released = threading.Event()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """Known once the server has started; after its end, calls to it are refused."""
        return f"http://127.0.0.1:{self.port}/functions/v1/hlf-dynamics-sync"

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def then(self, *behaviours: Behaviour) -> None:
        """Append to the script."""
        with self.changed:
            self._steps.extend(behaviours)

    def release(self) -> None:
        """Let go of every request that hangs, now and later."""
        self.released.set()

    def requests_for(self, contact_id: UUID | None) -> list[PortalRequest]:
        with self.changed:
            return [request for request in self.requests if request.contact_id == contact_id]

    def wait_until(self, condition: Callable[[], bool], *, timeout_seconds: float = 10) -> None:
        """Wait until a condition on the records holds, such as ``lambda: len(portal.requests) == 3``."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_seconds), "the portal waited in vain"

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.closing.clear()
        self._listener.settimeout(0.1)
        self._acceptor = threading.Thread(target=self._accept, name="portal", daemon=True)
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends the wait at once, where the system can
        self._acceptor.join()
        self._listener.close()
        with self.changed:
            left = dict(self._connections)
        for connection, thread in left.items():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), name="portal-connection", daemon=True)
            with self.changed:
                self._connections[connection] = thread
                self.connections_made += 1
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                while connection.fileno() >= 0 and (arrived := _receive(connection)) is not None:
                    self._answer(connection, *arrived)
        finally:
            with self.changed:
                del self._connections[connection]
                self.changed.notify_all()

    def _answer(self, connection: socket.socket, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        with self.changed:
            request = self._record(method, path, headers, body)
            exchange = Exchange(
                connection=connection,
                request=request,
                visible=self.visible,
                released=self.released,
                closing=self.closing,
            )
            open_ones = [other for other in self._in_flight if not (other.answered or other.is_given_up)]
            self.overlaps += [
                (other.request, request)
                for other in open_ones
                if request.contact_id is not None and other.request.contact_id == request.contact_id
            ]
            self.peak_in_flight = max(self.peak_in_flight, len(open_ones) + 1)
            self._in_flight.append(exchange)
            behave = self._behaviour(request)
            self.changed.notify_all()
        try:
            behave(exchange)
        finally:
            with self.changed:
                self._in_flight.remove(exchange)

    def _record(self, method: str, path: str, headers: dict[str, str], body: bytes) -> PortalRequest:
        content: Any = None
        contact_id, visible = None, None
        with contextlib.suppress(ValueError):
            content = json.loads(body)
        if isinstance(content, dict):
            with contextlib.suppress(ValueError):
                contact_id = UUID(str(content.get("contact_id")))
            visible = content["visible"] if isinstance(content.get("visible"), bool) else None
        request = PortalRequest(
            number=len(self.requests) + 1,
            arrived_seconds=time.monotonic(),
            method=method,
            path=path,
            headers=headers,
            body=body,
            authorized=headers.get("authorization") == f"Bearer {self.key}",
            json=content,
            contact_id=contact_id,
            visible=visible,
        )
        self.requests.append(request)
        return request

    def _behaviour(self, request: PortalRequest) -> Behaviour:
        if not request.authorized:
            return error(401, "unauthorized")
        if self.decide is not None:
            return self.decide(request)
        return self._steps.popleft() if self._steps else self.default


def _receive(connection: socket.socket) -> tuple[str, str, dict[str, str], bytes] | None:
    """Read one request; None when the caller has closed the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        more = connection.recv(65536)
        if not more:
            return None
        body += more
    return method, path, headers, body
