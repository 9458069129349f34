"""Claim, lease, settle: how an intent leaves the database and comes back with an answer, once for all deliveries.

A claim is committed before anything is sent and holds its rows for the length of a lease. Whatever happens to the
process, the rows are due again when the lease runs out. A settle names the token of its claim: without the token
(somebody else took over) nothing is written.
"""

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from hashlib import sha256
from typing import Generic, TypeVar
from uuid import UUID, uuid4

from certjob import database
from certjob.database import Connection, persist
from certjob.errors import Cause, StageEnd

_CLAIM_TRIES = 3
_CLAIM_LOCK_TIMEOUT_MS = 10_000
"""A claim skips locked rows; this is for a locked table, which ends the stage."""


def lease_clock() -> float:
    """Seconds on a clock that keeps counting while the machine sleeps: a suspended laptop has lost its lease."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The time a claim is good for, counted from before the claim was sent."""

    claimed_at: float
    """On ``lease_clock``."""
    seconds: float

    def fits(self, worst_case_seconds: float) -> bool:
        """Whether a unit of work that takes at most this long surely ends inside the lease."""
        return lease_clock() - self.claimed_at + worst_case_seconds < self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRow:
    """A claimed row, whatever its table."""

    id: int
    attempts: int
    """Claims that led to an attempt, this one included."""
    claim_token: UUID
    """What a settle must name."""


Item = TypeVar("Item", bound=ClaimedRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What became of a claimed row."""

    status: str
    """The row's new status; ``pending`` = to be tried again."""
    delay_seconds: float = 0.0
    """When it is due again, for ``pending``."""
    count_attempt: bool = True
    """False: the claim led to no attempt (released, or everybody's fault); it is taken off ``attempts``."""
    error: str | None = None
    code: Cause | None = None
    """Why it failed, beside the text."""
    maybe_sent: bool = False
    """The outside may have taken it: a repeat must say so."""


RELEASED = Settlement(status="pending", count_attempt=False)
"""Claimed and not begun: due now, as before the claim."""


class Answer(Enum):
    """What a settle found."""

    LOST = "lost"
    """The token is gone: somebody took over after the lease. Nothing was written."""
    HELD = "held"
    """Another session holds the row, or what it is about: nothing was written."""
    SETTLED = "settled"
    RAISED = "raised"
    """A newer value was queued during the call: the row is pending and due now, or withdrawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox(Generic[Item]):
    """One table of intents, through its claim and settle statements."""

    connection: Connection
    table: str
    """The end of the statements' names: claim_<table> and settle_<table>."""
    item: type[Item]
    lease_seconds: float

    def claim(self, lock: str, parameters: dict[str, object]) -> tuple[list[Item], Lease]:
        """Claim what the statement ``lock`` locks, in its order, each row with a fresh token; committed on return.

        That statement only locks. A second one, claim_<table>, reads the rest, such as the contact to call for, in a
        newer snapshot: a row may have changed meanwhile. If none can be claimed any more, it looks again. Both get the
        parameters.
        """
        for _ in range(_CLAIM_TRIES):
            lease = Lease(claimed_at=lease_clock(), seconds=self.lease_seconds)
            with database.transaction(self.connection, lock_timeout_ms=_CLAIM_LOCK_TIMEOUT_MS, by_index=True):
                ids = [row[0] for row in database.fetch(self.connection, lock, parameters)]
                claim = parameters | {"ids": ids, "token": uuid4(), "lease_seconds": self.lease_seconds}
                claimed = f"claim_{self.table}"
                items = database.fetch(self.connection, claimed, claim, into=self.item) if ids else []
            if items or not ids:
                break
        return sorted(items, key=lambda item: ids.index(item.id)), lease

    def settle(
        self,
        item: Item,
        settlement: Settlement,
        *,
        then: Callable[[Answer], None] = lambda _answer: None,
        lock_timeout_ms: int | None = None,
    ) -> Answer:
        """Write what became of a claimed row; ``then`` writes in the same transaction.

        It insists while other sessions hold locks. With ``lock_timeout_ms`` it waits no longer than that: HELD.
        """

        def write() -> Answer:
            values = {"id": item.id, "token": item.claim_token, "version": getattr(item, "version", None)}
            rows = database.fetch(self.connection, f"settle_{self.table}", values | asdict(settlement))
            answer = Answer.LOST if not rows else Answer.SETTLED if rows[0][0] else Answer.RAISED
            then(answer)
            return answer

        if lock_timeout_ms is None:
            return persist(self.connection, write)
        try:
            return persist(self.connection, write, lock_timeout_ms=lock_timeout_ms, tries=1)
        except database.CONTENTION:
            return Answer.HELD


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStop:
    """One line of ``stopped`` in the report."""

    stage: str
    code: StageEnd
    reason: str
    fault: str = ""
    """The error that ended it, where ``code`` alone does not tell one such error from another."""

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"

    @property
    def key(self) -> str:
        """The same for the same reason, run after run: a background job does not repeat itself.

        Of ``fault`` the words with a digit do not count: servers say the time and the number of a session with each
        refusal. Only a hash of the others is in it, because the key leaves this machine with a ping.
        """
        words = [word for word in self.fault.split() if not re.search(r"\d", word)]
        fault = sha256(" ".join(words).encode()).hexdigest()[:8]
        return f"{self.stage}:{self.code}:{fault}" if words else f"{self.stage}:{self.code}"
