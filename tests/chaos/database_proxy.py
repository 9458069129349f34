"""A proxy in front of PostgreSQL that knows where a statement ends: a fault comes exactly before or after it."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Spot, When
from tests.chaos.strikes import BLACK_HOLES, ENDS_THE_CONNECTION, Strike

_ENDS_A_STATEMENT = frozenset(b"QS")
"""Query and Sync. With the extended protocol everything before a Sync is kept back, for an Execute acts by itself."""
_PARSE, _READY = ord("P"), ord("Z")


class DatabaseProxy:
    """Listens on loopback for one process; a context manager."""

    def __init__(self, cluster: Cluster, strike: Strike) -> None:
        self.statements: list[str] = []
        """What was forwarded or struck, in order, by the beginnings of their texts."""
        self.first_statement = threading.Event()
        self._cluster = cluster
        self._strike = strike
        self._is_black = threading.Event()
        self._closing = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.set()
        for each in (self._listener, *self._sockets):
            _close(each)
        for thread in self._threads:
            thread.join(30)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets.append(client)
            if self._is_black.is_set():
                continue
            try:
                server = self._cluster.dial()
            except OSError:
                _close(client)
                continue
            self._sockets.append(server)
            session = _Session(client, server)
            self._start(self._forward, session)
            self._start(self._answer, session)

    def _forward(self, session: "_Session") -> None:
        """From certjob to the server, a whole statement at a time."""
        with contextlib.suppress(OSError):
            kept, text = b"", ""
            for kind, frame in _frames(session.client, begins_untyped=True):
                kept += frame
                if kind == _PARSE:
                    text = frame[5:].split(b"\0", 2)[1].decode()
                if kind not in _ENDS_A_STATEMENT:
                    if kind is None or kind in b"Xpc":  # the start-up packet, the end, a password
                        session.server.sendall(kept)
                        kept = b""
                    continue
                if kind == ord("Q"):
                    text = frame[5:].rstrip(b"\0").decode()
                if not self._pass_on(session, kept, text):
                    return
                kept, text = b"", ""
        session.close_unless(self._is_black)

    def _pass_on(self, session: "_Session", data: bytes, text: str) -> bool:
        """Forward one statement, unless the fault comes first; whether the connection goes on."""
        self.statements.append(" ".join(text.split())[:200])
        self.first_statement.set()
        chosen = self._strike.chooses(Spot.STATEMENT, text)
        if chosen and not self._struck(session, When.BEFORE):
            return False
        if self._is_black.is_set():
            self._closing.wait(120)
            return False
        session.is_held = chosen and not self._strike.struck.is_set()
        session.server.sendall(data)
        return True

    def _answer(self, session: "_Session") -> None:
        """From the server to certjob; the answer to the fault's statement is kept until it is whole."""
        with contextlib.suppress(OSError):
            held = b""
            for kind, frame in _frames(session.server):
                if not session.is_held:
                    if self._is_black.is_set():
                        self._closing.wait(120)
                        return
                    session.client.sendall(frame)
                    continue
                held += frame
                if kind == _READY:
                    goes_on = self._struck(session, When.AFTER)
                    session.is_held = False
                    if not goes_on:
                        return
                    if self._strike.fault is not None and self._strike.fault.answer_survives:
                        session.client.sendall(held)
        session.close_unless(self._is_black)

    def _struck(self, session: "_Session", when: When) -> bool:
        """Let the fault happen if this is its side; whether the connection goes on."""
        fault = self._strike.fault
        if fault is None or fault.when is not when:
            return True
        if fault.action in BLACK_HOLES:
            self._is_black.set()
            self._strike.at(when)
            self._closing.wait(120)
            return False
        action = self._strike.at(when)
        if action in ENDS_THE_CONNECTION:
            session.close()
            return False
        return True


class _Session:
    """One connection of certjob's, and ours to the server for it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_held = False
        """The answer to the statement just forwarded is kept back."""

    def close(self) -> None:
        _close(self.client)
        _close(self.server)

    def close_unless(self, is_black: threading.Event) -> None:
        """One end is gone: so is the other, but the news does not get through a black hole."""
        if not is_black.is_set():
            self.close()


def _frames(connection: socket.socket, *, begins_untyped: bool = False) -> Iterator[tuple[int | None, bytes]]:
    """The protocol's messages: a type byte and a length that counts itself; the first of a client has no type."""
    data = b""
    typed = not begins_untyped
    while received := connection.recv(65536):
        data += received
        while len(data) >= 4 + typed:
            length = int.from_bytes(data[typed : 4 + typed]) + typed
            if len(data) < length:
                break
            frame, data = data[:length], data[length:]
            yield (frame[0] if typed else None), frame
            typed = True


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
