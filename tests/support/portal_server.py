"""An HTTP server on loopback that replaces the portal's Edge Function.

    with PortalServer([error(503, "dynamics_unavailable", retry_after="2"), reset(), ok()]) as portal:
        ...                                # calls to portal.url with the key portal.key
        assert portal.visible == {contact_id: False}
        assert portal.overlaps == []       # never two open calls for one contact

Each request takes the next behaviour of the script, which may also be a function of the request; after its end, each
takes ``portal.default``. ``tests.support.portal_answers`` has the behaviours. A wrong key gets 401 and does not advance
the script.
"""

import contextlib
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from uuid import UUID

from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, error, ok

Script = Iterable[Behaviour] | Callable[[PortalRequest], Behaviour]


class PortalServer:
    """The server; a context manager. A test may read and set its attributes at any time."""

    def __init__(
        self, script: Script = (), *, key: str = "planted-portal-key", default: Behaviour | None = None
    ) -> None:
        self.key, self.default = key, default or ok()
        self.visible: dict[UUID, bool] = {}
        """The last applied value of each contact."""
        self.secret_until: str | None = None
        """The last day of the function's client secret."""
        self.until: dict[UUID, str | None] | None = None
        """The last visible day of each contact; None if the portal has no column for it."""
        self.decide = script if callable(script) else None
        self._steps: deque[Behaviour] = deque(() if callable(script) else script)
        self.requests: list[PortalRequest] = []
        self.overlaps: list[tuple[PortalRequest, PortalRequest]] = []
        """An unanswered request with a waiting caller, and the next one for the same contact."""
        self.peak_in_flight = 0
        """The most unanswered requests at the same time."""
        self.connections: list[socket.socket] = []
        """Every connection, also a closed one."""
        self._in_flight: list[Exchange] = []
        self.changed = threading.Condition()
        """Guards the records; notified of each request."""
        self.released, self.closing = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/functions/v1/hlf-dynamics-sync"

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a command that calls it."""
        return {"CERTJOB_PORTAL_URL": self.url, "CERTJOB_PORTAL_KEY": self.key}

    @property
    def pushes(self) -> list[PortalRequest]:
        """The requests that are not readings."""
        return [request for request in self.requests if request.method == "POST"]

    @property
    def values(self) -> list[bool | None]:
        """The pushed values, in order."""
        return [request.visible for request in self.pushes]

    @property
    def is_idle(self) -> bool:
        """Whether it works on no request, not even on one of a dead caller."""
        return not self._in_flight

    def then(self, *behaviours: Behaviour) -> None:
        """Append to the script."""
        with self.changed:
            self._steps.extend(behaviours)

    def release(self) -> None:
        """Let every request that hangs go on, now and later."""
        self.released.set()

    def wait_until(self, condition: Callable[[], bool], *, timeout_seconds: float = 10) -> None:
        """Wait for a condition on the records, such as ``lambda: len(portal.requests) == 3``."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_seconds), "the condition did not become true"

    def __enter__(self) -> Self:
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), name="portal", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()

    def answer(self, connection: socket.socket, **arrived: Any) -> None:
        """Record a request and answer it."""
        with self.changed:
            request = PortalRequest(number=len(self.requests) + 1, **arrived)
            self.requests.append(request)
            exchange = Exchange(self, connection, request)
            unanswered = [other for other in self._in_flight if not (other.answered or other.is_given_up)]
            if request.contact_id is not None:
                same = [other.request for other in unanswered if other.request.contact_id == request.contact_id]
                self.overlaps += [(other, request) for other in same]
            self.peak_in_flight = max(self.peak_in_flight, len(unanswered) + 1)
            self._in_flight.append(exchange)
            behave = self._behaviour(request)
            self.changed.notify_all()
        try:
            behave(exchange)
        finally:
            with self.changed:
                self._in_flight.remove(exchange)

    def _behaviour(self, request: PortalRequest) -> Behaviour:
        if request.headers.get("authorization") != f"Bearer {self.key}":
            return error(401, "unauthorized")
        if self.decide is not None:
            return self.decide(request)
        return self._steps.popleft() if self._steps else self.default


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for them
    request_queue_size = 128

    def __init__(self, portal: PortalServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.portal = portal

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self.portal.changed:
            self.portal.connections.append(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):  # the caller has gone
            raise error


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) == length:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.server.portal.answer(self.connection, method=self.command, path=self.path, headers=headers, body=body)
        self.close_connection = self.close_connection or self.connection.fileno() < 0

    do_GET = do_POST = _answer  # noqa: N815 - the base class asks for these names

    def log_message(self, format: str, *args: object) -> None:
        """Write no log."""
