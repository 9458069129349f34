"""The hand that strikes: it waits for the place of its fault, and then does what the fault says, once."""

import threading
from signal import SIGINT, SIGKILL, SIGTERM

from tests.chaos.cluster import Cluster
from tests.chaos.faults import Action, Fault, Spot, When
from tests.support.command_line import Child

ENDS_THE_CONNECTION = frozenset({Action.KILL, Action.CUT, Action.RESTART})
"""After these the proxy closes what it holds; what was not forwarded never is."""
BLACK_HOLES = frozenset({Action.BLACK_HOLE_KILL, Action.BLACK_HOLE_STOP})


class Strike:
    """One fault of one process; without a fault, nothing ever happens."""

    def __init__(self, fault: Fault | None, *, cluster: Cluster) -> None:
        self.fault = fault
        self.struck = threading.Event()
        self._begun = threading.Event()
        self.has_killed = False
        self.error: Exception | None = None
        """What went wrong in the harness itself, in the thread of whoever was struck."""
        self._cluster = cluster
        self._lock = threading.Lock()
        self._count = 0
        self._victim: Child | None = None
        self._armed = threading.Event()

    def arm(self, victim: Child) -> None:
        self._victim = victim
        self._armed.set()

    def chooses(self, spot: Spot, text: str = "") -> bool:
        """Count one more statement, request or mail; whether it is the fault's."""
        fault = self.fault
        if fault is None or fault.spot is not spot or fault.text not in text:
            return False
        with self._lock:
            self._count += 1
            return self._count == fault.number

    def at(self, when: When) -> Action | None:
        """At the chosen place: strike if it is the fault's side of it, and return what was done."""
        fault = self.fault
        if fault is None or fault.when is not when or self.struck.is_set():
            return None
        self.strike()
        return fault.action

    def struck_itself(self) -> None:
        """The process has struck itself, as the fault says."""
        self.has_killed = self.fault is not None and self.fault.action is Action.KILL
        self.struck.set()

    def finish(self) -> None:
        """Wait for the end of what has begun: a restart outlasts the command that it ends."""
        assert not self._begun.is_set() or self.struck.wait(60), "the strike does not end"

    def strike(self) -> None:
        """Do it; returns when it is done."""
        assert self.fault is not None
        self._begun.set()
        try:
            self._do(self.fault.action)
        except Exception as error:  # noqa: BLE001 - told at the end of the command
            self.error = error
        finally:
            self.struck.set()

    def _do(self, action: Action) -> None:
        assert self._armed.wait(10)
        assert self._victim is not None
        process = self._victim.process
        match action:
            case Action.KILL | Action.BLACK_HOLE_KILL:
                process.kill()
                self.has_killed = process.wait() == -SIGKILL  # it may have ended by itself just before
            case Action.STOP | Action.BLACK_HOLE_STOP:
                for number in (SIGTERM, SIGINT):  # the second one ends every wait
                    process.send_signal(number)
            case Action.RESTART:
                self._cluster.restart()
            case Action.CUT | Action.LATE | Action.CANCEL:
                pass  # the proxy does it, or the process itself
