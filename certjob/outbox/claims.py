"""Claim rows for delivery, hold them for the length of a lease, and settle them with the outcome.

A claim is committed before any call or mail goes out, and it reserves the rows until its lease expires. If the process
dies, the rows are due again after that. A settle names the token of its claim. If another process has taken over, the
token does not match and the settle changes no row.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from hashlib import sha256
from typing import Generic, TypeVar
from uuid import UUID, uuid4

import psycopg

from certjob import database
from certjob.database import Connection, persist
from certjob.errors import Cause, CertjobError, StageEnd

_CLAIM_TRIES = 3
_CLAIM_LOCK_TIMEOUT_MS = 10_000
"""A claim skips locked rows. This timeout is for a locked table, which ends the stage."""


def lease_clock() -> float:
    """Return seconds on a clock that also counts while the machine is suspended, because leases expire then, too."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The time for which a claim is valid."""

    claimed_at: float
    """Just before the claim was sent to the server, on ``lease_clock``."""
    seconds: float

    def fits(self, worst_case_seconds: float) -> bool:
        """Return whether work of at most ``worst_case_seconds`` is certain to finish within the lease."""
        return lease_clock() - self.claimed_at + worst_case_seconds < self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedRow:
    """The columns that every claimed row has."""

    id: int
    attempts: int
    """Claims that led to an attempt, including this one."""
    claim_token: UUID
    lease: Lease


Item = TypeVar("Item", bound=ClaimedRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The outcome of a claimed row."""

    status: str
    """The row's new status; ``pending`` schedules a retry."""
    delay_seconds: float = 0.0
    """Delay before a ``pending`` row is due again."""
    count_attempt: bool = True
    """False if the row was not tried, or failed for a reason that affects all rows; ``attempts`` then falls by one."""
    error: str | None = None
    code: Cause | None = None
    maybe_sent: bool = False
    """The server may have accepted the message; a repeat must say so."""


RELEASED = Settlement(status="pending", count_attempt=False)
"""Gives back an unused claim: the row is due now and the attempt is not counted."""


class Answer(Enum):
    """The result of a settle."""

    LOST = "lost"
    """The token does not match, because another process took over after the lease. No row was changed."""
    HELD = "held"
    """Another session has locked the row or a related one. No row was changed."""
    SETTLED = "settled"
    RAISED = "raised"
    """A newer value was queued during the call. The row is pending and due now, or withdrawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox(Generic[Item]):
    """Claims and settles the rows of one outbox table."""

    connection: Connection
    item: type[Item]
    claim_statement: str
    settle_statement: str
    lease_seconds: float

    def claim(self, lock: str, parameters: dict[str, object]) -> list[Item]:
        """Claim the rows that the statement ``lock`` returns, in its order and with a new token, and commit.

        ``lock`` only locks rows. ``claim_statement`` then reads the rest, such as the contact, in a newer snapshot,
        because a row may have changed before it was locked. If it claims none of the locked rows, the claim is retried.
        Both statements get the parameters.
        """
        for _ in range(_CLAIM_TRIES):
            lease = Lease(claimed_at=lease_clock(), seconds=self.lease_seconds)
            with database.transaction(self.connection, lock_timeout_ms=_CLAIM_LOCK_TIMEOUT_MS, by_index=True):
                ids = [row[0] for row in database.fetch(self.connection, lock, parameters)]
                claim = parameters | {"ids": ids, "token": uuid4(), "lease_seconds": self.lease_seconds}
                rows = database.fetch(self.connection, self.claim_statement, claim, into=dict) if ids else []
            if rows or not ids:
                break
        return sorted((self.item(lease=lease, **row) for row in rows), key=lambda item: ids.index(item.id))

    def store(self, item: Item, settlement: Settlement, **columns: object) -> Answer:
        """Store the outcome of a claimed row, and columns of its table, in the caller's transaction."""
        values = {"id": item.id, "token": item.claim_token, "version": getattr(item, "version", None)}
        rows = database.fetch(self.connection, self.settle_statement, values | asdict(settlement) | columns)
        return Answer.LOST if not rows else Answer.SETTLED if rows[0][0] else Answer.RAISED

    def settle(self, item: Item, settlement: Settlement, **columns: object) -> Answer:
        """Store the same and commit. Lock conflicts are retried (see ``persist``)."""
        return persist(self.connection, partial(self.store, item, settlement, **columns))


def store_again(lost: Connection, store: Callable[[Connection], object]) -> None:
    """Store outcomes over one new connection, after the session of ``lost`` has ended.

    If this fails, the rows keep their leases, and are due again when those have expired.
    """
    with suppress(CertjobError, psycopg.Error), database.connect_again(lost) as fresh:
        store(fresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStop:
    """A stage that stopped early: one line of ``stopped`` in the report."""

    stage: str
    code: StageEnd
    reason: str
    fault: str = ""
    """The error that stopped the stage, if ``code`` does not identify it."""

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}"

    @property
    def key(self) -> str:
        """Return a key that is equal for equal reasons, because later runs do not report the same reason again.

        It contains a hash of ``fault``, because pings send it to another machine. The hash ignores words with digits,
        because servers put times and session numbers into their messages.
        """
        words = [word for word in self.fault.split() if not re.search(r"\d", word)]
        fault = sha256(" ".join(words).encode()).hexdigest()[:8]
        return f"{self.stage}:{self.code}:{fault}" if words else f"{self.stage}:{self.code}"
