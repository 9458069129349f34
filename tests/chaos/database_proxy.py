"""A proxy in front of PostgreSQL that knows where a statement ends: a fault comes exactly before or after it."""

import socket
from collections.abc import Iterator

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Action, Spot, When
from tests.chaos.strikes import BLACK_HOLES, ENDS_THE_CONNECTION, Strike
from tests.support.proxy import Link, Proxy, dial

_ENDS_A_STATEMENT = frozenset(b"QS")
"""Query and Sync. With the extended protocol everything before a Sync is kept back, for an Execute acts by itself."""
_PARSE, _QUERY, _READY = b"PQZ"


class DatabaseProxy(Proxy):
    """For one process."""

    def __init__(self, cluster: Cluster, strike: Strike) -> None:
        super().__init__(lambda: dial(cluster.url("postgres")))
        self.statements: list[str] = []
        """What was forwarded or struck, in order, by the beginnings of their texts."""
        self._strike = strike
        self._held: set[Link] = set()
        """Where the answer to the statement just forwarded is kept back."""

    def forward(self, link: Link) -> None:
        """From certjob to the server, a whole statement at a time."""
        kept, text = b"", ""
        for kind, frame in _frames(link.client, begins_untyped=True):
            kept += frame
            if kind == _PARSE:
                text = frame[5:].split(b"\0", 2)[1].decode()
            if kind not in _ENDS_A_STATEMENT:
                if kind is None or kind in b"Xpc":  # the start-up packet, the end, a password
                    link.server.sendall(kept)
                    kept = b""
                continue
            if kind == _QUERY:
                text = frame[5:].rstrip(b"\0").decode()
            self.statements.append(" ".join(text.split())[:200])
            is_chosen = self._strike.chooses(Spot.STATEMENT, text)
            if is_chosen and not self._struck(link, When.BEFORE):
                return
            if self.is_silent.is_set():
                return
            if is_chosen and not self._strike.struck.is_set():
                self._held.add(link)
            link.server.sendall(kept)
            kept, text = b"", ""

    def answer(self, link: Link) -> None:
        """From the server to certjob; the answer to the fault's statement is kept until it is whole."""
        held = b""
        for kind, frame in _frames(link.server):
            if link not in self._held:
                if self.is_silent.is_set():
                    return
                link.client.sendall(frame)
                continue
            held += frame
            if kind == _READY:
                goes_on = self._struck(link, When.AFTER)
                self._held.discard(link)
                if not goes_on:
                    return
                if self._strike.fault is not None and self._strike.fault.action is Action.STOP:
                    link.client.sendall(held)

    def _struck(self, link: Link, when: When) -> bool:
        """Let the fault happen if this is its side; whether the connection goes on."""
        fault = self._strike.fault
        if fault is None or fault.when is not when:
            return True
        if fault.action in BLACK_HOLES:
            self.is_silent.set()
        action = self._strike.at(when)
        if action in ENDS_THE_CONNECTION:
            link.close()
        return action not in BLACK_HOLES | ENDS_THE_CONNECTION


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
