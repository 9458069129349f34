"""The rows of one table that become mails: claimed, each written from the facts of that moment, then settled.

What differs between reminders and digests: the statement that holds the recipient, the draft, and what is noted when
one was sent.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from enum import Enum
from typing import Generic

from certjob import database
from certjob.database import persist
from certjob.domain.addresses import parse_address
from certjob.errors import FailureCode, NotifyError
from certjob.mail.message import OutgoingMessage
from certjob.outbox.claims import RELEASED, Answer, Item, Lease, Outbox, Settlement

HOLD_MS = 500
"""So long a recipient is waited for: another process may be writing another mail of theirs."""
HELD_DELAY_SECONDS = 60.0
"""When to look again at a mail whose recipient is locked by another session: the facts may be changing."""


Writer = Callable[[], OutgoingMessage]
"""Writes a mail from facts that were read. Called without any lock, since templates take their time."""


class Unsent(Enum):
    """Why a claimed row becomes no mail now; its row says so already."""

    CANCELLED = "cancelled"
    FAILED = "failed"
    """There is no address, or it is not a valid one: no server was asked."""
    WAITS = "waits"
    """The recipient is locked by another session, or the row was taken over or deleted."""


class MailQueue(ABC, Generic[Item]):
    """Claims due rows, turns them into mails and settles them; each step is committed when it returns."""

    lease_seconds = 900.0

    def __init__(self, connection: database.Connection, *, table: str, item: type[Item], today: date) -> None:
        """``table`` names the statements: lock_due_, claim_, hold_, lock_, settle_ and reopen_refused_<table>."""
        self._connection = connection
        self._table = table
        self._today = today
        self._outbox = Outbox(connection, table=table, item=item, lease_seconds=self.lease_seconds)

    @abstractmethod
    def _draft(self, item: Item) -> Writer | str | None:
        """Read the facts while the recipient is held; return what writes the mail, or why it is cancelled.

        None: the row is not this claim's any more, or gone.
        """

    def _on_sent(self, item: Item) -> None:
        """Note more in the transaction that says that the mail was sent."""

    def claim(self) -> tuple[Item | None, Lease]:
        """Claim a due row, untried before retried, oldest first; None that a night of a later day has queued.

        One at a time: a lease then covers one message, and two runs share what is due.
        """
        items, lease = self._outbox.claim(f"lock_due_{self._table}", {"limit": 1, "today": self._today})
        return (items[0] if items else None), lease

    def release(self, item: Item) -> None:
        """Give a claimed row back, due now; its attempt does not count."""
        self._outbox.settle(item, RELEASED)

    def draft(self, item: Item) -> OutgoingMessage | Unsent:
        """Write the mail from the facts of this moment, or settle the row because none is to be sent.

        The recipient is held meanwhile: a review or a correction comes before this, or after it and finds what it did.
        """

        def decide() -> Writer | Unsent:
            address = self._hold(item)
            draft = self._draft(item) if address is not None else None
            if address is None or draft is None:
                return Unsent.WAITS
            if isinstance(draft, str):
                cancelled = Settlement(status="cancelled", error=draft, count_attempt=False)
                answer = self._outbox.settle(item, cancelled)
                return Unsent.CANCELLED if answer is Answer.SETTLED else Unsent.WAITS
            problem = _address_problem(address)
            if problem is None:
                return draft
            error, code = problem
            answer = self._outbox.settle(item, Settlement(status="failed", error=error, code=code, count_attempt=False))
            return Unsent.FAILED if answer is Answer.SETTLED else Unsent.WAITS

        try:
            draft = persist(self._connection, decide, lock_timeout_ms=HOLD_MS, tries=1)
        except database.CONTENTION:
            self._outbox.settle(item, replace(RELEASED, delay_seconds=HELD_DELAY_SECONDS))
            return Unsent.WAITS
        return draft if isinstance(draft, Unsent) else draft()

    def settle(self, item: Item) -> bool:
        """Write that a mail was sent; False if its lease was lost. It insists: a known outcome must be kept."""

        def note(answer: Answer) -> None:
            if answer is Answer.SETTLED:
                self._on_sent(item)

        return self._outbox.settle(item, Settlement(status="sent"), then=note) is not Answer.LOST

    def put_off(self, item: Item, error: NotifyError, *, delay_seconds: float, maybe_sent: bool) -> bool:
        """Write that a mail is to be tried again later; False if its lease was lost."""
        later = Settlement(
            status="pending",
            error=str(error),
            code=error.code,
            delay_seconds=delay_seconds,
            maybe_sent=maybe_sent,
        )
        return self._outbox.settle(item, later) is not Answer.LOST

    def refuse(self, item: Item, error: NotifyError, *, address: str) -> Answer:
        """Fail a row that a server refused, if the address is still the recipient's.

        SETTLED: failed. RAISED: the address was corrected meanwhile, the row is pending and due now. HELD: the
        recipient is locked by another session, perhaps to correct it; the row is pending and due in a while.
        """

        refused = Settlement(status="failed", error=str(error), code=error.code)

        def note(settlement: Settlement, answer: Answer) -> Answer:
            return Answer.LOST if self._outbox.settle(item, settlement) is Answer.LOST else answer

        def write() -> Answer:
            if self._hold(item) == address:
                return note(refused, Answer.SETTLED)
            return note(replace(refused, status="pending", count_attempt=False), Answer.RAISED)

        try:
            return persist(self._connection, write, lock_timeout_ms=HOLD_MS, tries=1)
        except database.CONTENTION:
            return note(replace(refused, status="pending", delay_seconds=HELD_DELAY_SECONDS), Answer.HELD)

    def reopen_refused(self, items: Sequence[Item], *, delay_seconds: float) -> None:
        """Put rows that were refused and should not be failed back to pending."""
        ids = [item.id for item in items]

        def reopen() -> None:
            database.execute(self._connection, f"lock_{self._table}", {"ids": ids})
            parameters = {"ids": ids, "delay_seconds": delay_seconds}
            database.execute(self._connection, f"reopen_refused_{self._table}", parameters)

        persist(self._connection, reopen)

    def _hold(self, item: Item) -> str | None:
        """Lock the recipient and return the address, empty without one; None: gone. It waits for other sessions."""
        address: str | None = database.fetch_value(self._connection, f"hold_{self._table}", {"id": item.id})
        return address


def _address_problem(address: str) -> tuple[str, FailureCode] | None:
    """Return why no mail can go to this address, or None."""
    if not address:
        return "no address", FailureCode.NO_ADDRESS
    try:
        parse_address(address)
    except ValueError as error:
        return f"the e-mail address {error}; correct it", FailureCode.BAD_ADDRESS
    return None
