"""The hand that strikes, once, at the place of its fault; and a proxy in front of PostgreSQL in which it can."""

import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from signal import SIGINT, SIGKILL, SIGTERM

from certjob import database
from tests.chaos.faults import Action, Fault, Spot, When
from tests.support.command_line import Child
from tests.support.proxy import Link, StallingProxy

_ENDS_THE_CONNECTION = frozenset({Action.KILL, Action.CUT, Action.RESTART})
"""After these the proxy closes what it holds; what was not forwarded never is."""
_BLACK_HOLES = frozenset({Action.BLACK_HOLE_KILL, Action.BLACK_HOLE_STOP})

_ENDS_A_STATEMENT = frozenset(b"QS")
"""Query and Sync. With the extended protocol everything before a Sync is kept back, for an Execute acts by itself."""
_PARSE, _QUERY, _READY = b"PQZ"
_SETTLES = {
    kind: max(re.split(r"%\(\w+\)s", database.query(f"settle_{kind}").decode()), key=len).strip()
    for kind in ("portal_events", "reminders")
}
"""How a statement is known by its text: the longest piece between two parameters."""


class Strike:
    """One fault of one process; without a fault, nothing ever happens."""

    def __init__(self, fault: Fault | None = None, meanwhile: Callable[[Action], None] = lambda _action: None) -> None:
        """``meanwhile`` does what is neither a signal nor the proxy's, in the thread of whoever is struck."""
        self.fault = fault
        self.victim: Future[Child] = Future()
        self.seen: Counter[Spot] = Counter()
        """The places that the process came to."""
        self.has_killed = False
        self._meanwhile = meanwhile
        self._lock = threading.Lock()
        self._candidates = 0
        self._begun = threading.Event()
        self._done: Future[None] = Future()

    @property
    def is_struck(self) -> bool:
        return self._done.done()

    def is_here(self, spot: Spot, text: str = "") -> bool:
        """Count one more statement, request or mail; whether it is the fault's."""
        with self._lock:
            self.seen[spot] += 1
            if self.fault is None or self.fault.spot is not spot or _SETTLES.get(self.fault.settle, "") not in text:
                return False
            self._candidates += 1
            return self._candidates == self.fault.number

    def if_here(self, spot: Spot) -> "Strike":
        """The same for whoever has no text: this strike at the fault's place, else one that does nothing."""
        return self if self.is_here(spot) else Strike()

    def at(self, when: When) -> Action | None:
        """At the chosen place: strike if it is the fault's side of it, and return what was done."""
        if self.fault is None or self.fault.when is not when or self.is_struck:
            return None
        self._begun.set()
        try:
            self._strike(self.fault.action)
        except Exception as error:  # noqa: BLE001 - what went wrong in the harness is told at the end of the command
            self._done.set_exception(error)
        else:
            self._done.set_result(None)
        return self.fault.action

    def struck_itself(self) -> None:
        """The process has struck itself, as the fault says."""
        self.has_killed = self.fault is not None and self.fault.action is Action.KILL
        self._done.set_result(None)

    def finish(self) -> None:
        """Wait for the end of what has begun (a restart outlasts the command that it ends); raise what it raised."""
        if self._begun.is_set():
            self._done.result(60)

    def _strike(self, action: Action) -> None:
        process = self.victim.result(10).process
        if action in {Action.KILL, Action.BLACK_HOLE_KILL}:
            process.kill()
            self.has_killed = process.wait() == -SIGKILL  # it may have ended by itself just before
        elif action in {Action.STOP, Action.BLACK_HOLE_STOP}:
            for number in (SIGTERM, SIGINT):  # the second one ends every wait
                process.send_signal(number)
        else:
            self._meanwhile(action)


class DatabaseProxy(StallingProxy):
    """For one process. It knows where a statement ends: a fault comes exactly before or after it."""

    def __init__(self, database_url: str, strike: Strike) -> None:
        super().__init__(database_url)
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
            elif kind == _QUERY:
                text = frame[5:].rstrip(b"\0").decode()
            if kind in _ENDS_A_STATEMENT:
                is_chosen = self._strike.is_here(Spot.STATEMENT, text)
                if (is_chosen and not self._goes_on(link, When.BEFORE)) or self.is_silent.is_set():
                    return
                if is_chosen and not self._strike.is_struck:
                    self._held.add(link)
            elif kind is not None and kind not in b"Xpc":  # all but the start-up packet, the end, a password
                continue
            link.server.sendall(kept)
            kept, text = b"", ""

    def answer(self, link: Link) -> None:
        """From the server to certjob; the answer to the fault's statement is kept until it is whole."""
        held = b""
        for kind, frame in _frames(link.server):
            if link in self._held:
                held += frame
                if kind != _READY:
                    continue
                if not self._goes_on(link, When.AFTER):
                    return
                self._held.discard(link)
                frame = held  # noqa: PLW2901 - the whole of it
            if self.is_silent.is_set():
                return
            link.client.sendall(frame)

    def _goes_on(self, link: Link, when: When) -> bool:
        """Let the fault happen if this is its side; whether the connection goes on."""
        fault = self._strike.fault
        if fault is not None and fault.when is when and fault.action in _BLACK_HOLES:
            self.is_silent.set()
        action = self._strike.at(when)
        if action in _ENDS_THE_CONNECTION:
            link.close()
        return action not in _BLACK_HOLES | _ENDS_THE_CONNECTION


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
