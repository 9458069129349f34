"""Cause a fault once, at its place; and a proxy in front of PostgreSQL that recognises statements."""

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from signal import SIGINT, SIGTERM

from tests.chaos.faults import Action, Fault, Spot, When
from tests.support.command_line import Child
from tests.support.proxy import Link, Proxy

_CLOSES_THE_CONNECTION = frozenset({Action.KILL, Action.CUT, Action.RESTART})
_PARSE, _QUERY, _SYNC, _READY = b"PQSZ"
_SETTLES = {
    "portal_events": "UPDATE portal_sync_events AS e\nSET status = CASE",
    "reminders": "l.deferred_since >= l.queued_at",
}
"""Texts that only the statements that settle contain."""

Moment = Callable[[When], Action | None]
"""To be called at each moment of an event; returns the action that was carried out."""


def nothing(_when: When) -> None:
    """Let the event go on: it is not the fault's."""


class Trigger:
    """Counts the events of one process and causes its fault, if it has one."""

    def __init__(self, fault: Fault | None = None, beside: Callable[[Action], None] = lambda _action: None) -> None:
        """``beside`` carries out actions that are neither signals nor the proxy's."""
        self.fault, self._beside = fault, beside
        self.victim: Future[Child] = Future()
        self.seen: Counter[Spot] = Counter()
        self.is_silent = threading.Event()
        """The database connection is a black hole."""
        self.has_begun = self.is_done = False
        self._lock, self._candidates = threading.Lock(), 0

    def reach(self, spot: Spot, text: str = "") -> Moment:
        """Count an event; return ``nothing`` for other events than the fault's."""
        with self._lock:
            self.seen[spot] += 1
            if self.fault is not None and self.fault.spot is spot and _SETTLES.get(self.fault.settle, "") in text:
                self._candidates += 1
                return self._cause if self._candidates == self.fault.number else nothing
        return nothing

    def _cause(self, when: When) -> Action | None:
        if self.fault is None or self.fault.when is not when or self.has_begun:
            return None
        self.has_begun = True
        process, action = self.victim.result(10).process, self.fault.action
        if action is Action.BLACK_HOLE:
            self.is_silent.set()
        if action is Action.KILL:
            process.kill()
            process.wait()
        elif action in {Action.STOP, Action.BLACK_HOLE}:
            for number in (SIGTERM, SIGINT):  # the second one ends every wait
                process.send_signal(number)
        else:
            self._beside(action)
        self.is_done = True
        return action


class DatabaseProxy(Proxy):
    """For one process: it causes the fault exactly before or after a statement."""

    def __init__(self, database_url: str, trigger: Trigger) -> None:
        super().__init__(database_url)
        self.is_silent = trigger.is_silent
        self._trigger = trigger
        self._held: dict[Link, Moment] = {}
        """Connections that wait for the whole answer to the fault's statement."""

    def forward(self, link: Link) -> None:
        """Forward certjob's messages statement by statement: a Query, or everything up to a Sync."""
        kept, text = b"", ""
        for kind, frame in _frames(link.client, begins_untyped=True):
            kept += frame
            if kind == _PARSE:
                text = frame[5:].split(b"\0", 2)[1].decode()
            elif kind == _QUERY:
                text = frame[5:].rstrip(b"\0").decode()
            if kind in {_QUERY, _SYNC}:
                moment = self._trigger.reach(Spot.STATEMENT, text)
                if self._is_over(link, moment(When.BEFORE)):
                    return
                if moment is not nothing and not self._trigger.has_begun:
                    self._held[link] = moment
            elif kind is not None and kind not in b"Xpc":  # all but the start-up packet, the end, a password
                continue
            link.server.sendall(kept)
            kept, text = b"", ""

    def answer(self, link: Link) -> None:
        """Forward the server's messages."""
        held = b""
        for kind, frame in _frames(link.server):
            held += frame
            if link in self._held and kind != _READY:
                continue
            if self._is_over(link, self._held.pop(link, nothing)(When.AFTER)):
                return
            link.client.sendall(held)
            held = b""

    def _is_over(self, link: Link, action: Action | None) -> bool:
        if action in _CLOSES_THE_CONNECTION:
            link.close()
        return action in _CLOSES_THE_CONNECTION or self.is_silent.is_set()


def _frames(connection: socket.socket, *, begins_untyped: bool = False) -> Iterator[tuple[int | None, bytes]]:
    """Yield the protocol's messages: a type byte, and a length that counts itself. A client's first has no type."""
    data, typed = b"", not begins_untyped
    while received := connection.recv(65536):
        data += received
        while len(data) >= 4 + typed:
            length = int.from_bytes(data[typed : 4 + typed]) + typed
            if len(data) < length:
                break
            frame, data = data[:length], data[length:]
            yield (frame[0] if typed else None), frame
            typed = True
