"""Claim, lease, settle: how an intent leaves the database and comes back with an answer, once for all deliveries.

A claim is committed before anything is sent and holds its rows for the length of a lease. Whatever happens to the
process, the rows are due again when the lease runs out. A settle names the token of its claim: without the token
(somebody else took over) nothing is written.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar
from uuid import UUID, uuid4

from certjob import database
from certjob.database import Connection, persist
from certjob.errors import FailureCode

_CLAIM_TRIES = 3


def lease_clock() -> float:
    """Seconds on a clock that keeps counting while the machine sleeps: a suspended laptop has lost its lease."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The time a claim is good for, counted from before the claim was sent."""

    claimed_at: float
    """On ``lease_clock``."""
    seconds: float
    clock: Callable[[], float] = lease_clock

    def fits(self, worst_case_seconds: float) -> bool:
        """Whether a unit of work that takes at most so long surely ends inside the lease."""
        return self.clock() - self.claimed_at + worst_case_seconds < self.seconds


class Claimed(Protocol):
    """A claimed row, whatever its table."""

    @property
    def id(self) -> int:
        """The row's key."""

    @property
    def claim_token(self) -> UUID:
        """What a settle must name."""


Item = TypeVar("Item", bound=Claimed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What became of one claimed row."""

    id: int
    token: UUID
    status: str
    """The row's new status; ``pending`` = to be tried again."""
    version: int = 0
    """The version that was delivered, for tables that have one."""
    delay_seconds: float = 0.0
    """When it is due again, for ``pending``."""
    uncount: bool = False
    """The claim led to no attempt (released, or everybody's fault): take it off ``attempts``."""
    error: str | None = None
    code: FailureCode | None = None
    """Why it failed, beside the text."""
    maybe_sent: bool = False
    """The outside may have taken it: a repeat must say so."""


class Answer(Enum):
    """What a settle found."""

    LOST = "lost"
    """The token is gone: somebody took over after the lease. Nothing was written."""
    HELD = "held"
    """Another session holds the row, or what it is about: nothing was written."""
    SETTLED = "settled"
    RAISED = "raised"
    """A newer wish came during the call: the row is pending and due now, or withdrawn."""


class Outbox(Generic[Item]):
    """One table of intents, through its claim and settle statements."""

    def __init__(
        self,
        connection: Connection,
        *,
        table: str,
        item: type[Item],
        lease_seconds: float,
        columns: Sequence[str],
        clock: Callable[[], float] = lease_clock,
        keeps_contacts: bool = False,
    ) -> None:
        """``table`` names the statements lock_due_, claim_, lock_ and settle_<table>, which takes ``columns``.

        ``keeps_contacts`` says that the locking statement returns a contact beside each id, which the claim is given.
        """
        self._keeps_contacts = keeps_contacts
        self._connection = connection
        self._table = table
        self._item = item
        self._lease_seconds = lease_seconds
        self._columns = columns
        self._clock = clock

    def claim(self, *, limit: int = 100) -> tuple[list[Item], Lease]:
        """Claim up to ``limit`` due rows, committed on return, each with a fresh token and the lease."""
        return self.claim_by(f"lock_due_{self._table}", {"limit": limit})

    def claim_by(self, lock: str, parameters: dict[str, object]) -> tuple[list[Item], Lease]:
        """Claim what another statement locks, such as one mentor's event whatever its retry time, in its order.

        The first statement only locks. What else a claim reads, such as the contact to call for, the second one reads
        in a newer snapshot: the first may have waited for, or passed by, a row that has changed meanwhile. When all of
        them have, it looks again.
        """
        for _ in range(_CLAIM_TRIES):
            items, lease = database.repeated(self._connection, lambda: self._claim(lock, parameters))
            if items is None or items:
                break
        return items or [], lease

    def _claim(self, lock: str, parameters: dict[str, object]) -> tuple[list[Item] | None, Lease]:
        """Return what was claimed; None when nothing could be locked."""
        lease = Lease(claimed_at=self._clock(), seconds=self._lease_seconds, clock=self._clock)
        with database.transaction(self._connection, by_index=True):
            rows = database.fetch(self._connection, lock, parameters)
            if not rows:
                return None, lease
            ids = [row[0] for row in rows]
            claim: dict[str, object] = {"ids": ids, "token": uuid4(), "lease_seconds": self._lease_seconds}
            if self._keeps_contacts:
                claim["contacts"] = [row[1] for row in rows]
            items = database.fetch(self._connection, f"claim_{self._table}", claim, into=self._item)
        order = {row_id: number for number, row_id in enumerate(ids)}
        return sorted(items, key=lambda item: order[item.id]), lease

    def settle(
        self, settlements: Sequence[Settlement], *, then: Callable[[dict[int, Answer]], None] | None = None
    ) -> dict[int, Answer]:
        """Write what became of claimed rows and return each row's answer; ``then`` writes in the same transaction."""
        if not settlements:
            return {}
        return persist(self._connection, lambda: self._settle(settlements, then))

    def try_to_settle(self, settlement: Settlement, *, then: Callable[[Answer], None], lock_timeout_ms: int) -> Answer:
        """Do the same for one row, waiting no longer than this for other sessions' locks; HELD: nothing was written."""
        try:
            answers = persist(
                self._connection,
                lambda: self._settle([settlement], lambda answers: then(answers[settlement.id])),
                lock_timeout_ms=lock_timeout_ms,
                tries=1,
            )
        except database.CONTENTION:
            return Answer.HELD
        return answers[settlement.id]

    def settle_one(
        self,
        item: Item,
        status: str,
        *,
        error: str | None = None,
        code: FailureCode | None = None,
        delay_seconds: float = 0.0,
        uncount: bool = False,
        maybe_sent: bool = False,
        then: Callable[[dict[int, Answer]], None] | None = None,
    ) -> Answer:
        """Write what became of one claimed row; its fields are explained in ``Settlement``."""
        settlement = Settlement(
            id=item.id,
            token=item.claim_token,
            status=status,
            error=error,
            code=code,
            delay_seconds=delay_seconds,
            uncount=uncount,
            maybe_sent=maybe_sent,
        )
        return self.settle([settlement], then=then)[item.id]

    def release(self, items: Sequence[Item]) -> dict[int, Answer]:
        """Give claimed rows back untouched: token gone, due now, the attempt not counted."""
        return self.settle(
            [
                Settlement(
                    id=item.id,
                    token=item.claim_token,
                    status="pending",
                    version=getattr(item, "version", 0),
                    uncount=True,
                )
                for item in items
            ]
        )

    def _settle(
        self, settlements: Sequence[Settlement], then: Callable[[dict[int, Answer]], None] | None
    ) -> dict[int, Answer]:
        if len(settlements) > 1:  # one row alone needs no order
            database.fetch(self._connection, f"lock_{self._table}", {"ids": [s.id for s in settlements]})
        values: dict[str, list[object]] = {
            "ids": [s.id for s in settlements],
            "tokens": [s.token for s in settlements],
            "versions": [s.version for s in settlements],
            "statuses": [s.status for s in settlements],
            "delays": [s.delay_seconds for s in settlements],
            "uncounts": [s.uncount for s in settlements],
            "errors": [s.error for s in settlements],
            "codes": [s.code for s in settlements],
            "maybe_sent": [s.maybe_sent for s in settlements],
        }
        rows = database.fetch(
            self._connection, f"settle_{self._table}", {column: values[column] for column in self._columns}
        )
        unchanged = dict(rows)
        answers = {
            s.id: Answer.LOST if s.id not in unchanged else Answer.SETTLED if unchanged[s.id] else Answer.RAISED
            for s in settlements
        }
        if then is not None:
            then(answers)
        return answers


CRASH = "crash"
"""The code of a stage that ended by an error nobody foresaw: said every time, and the run failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStop:
    """One line of ``stopped`` in the report."""

    stage: str
    code: str
    """The same for the same reason, run after run, so that a background job does not repeat itself."""
    reason: str
    correlation_id: str | None = None
    """That of the answer which ended it, if one did: the other side's log has a line with it."""

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"
