"""The rows of one table that become mails: claimed, each written from the facts of that moment, then settled.

What differs between reminders and digests: their statements, and the draft.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Generic

import psycopg

from certjob import database
from certjob.database import persist
from certjob.domain.addresses import parse_address
from certjob.errors import Cause, CertjobError, NotifyError
from certjob.mail.message import OutgoingMessage
from certjob.outbox.claims import RELEASED, Answer, Item, Lease, Outbox, Settlement

HOLD_MS = 500
"""How long to wait for a recipient: another process may be writing another mail to them."""
HELD_DELAY_SECONDS = 60.0
"""When to look again at a mail whose recipient is locked by another session: the facts may be changing."""


Writer = Callable[[], OutgoingMessage]
"""Writes a mail from facts that were read. Called without any lock, since templates take their time."""


class MailQueue(ABC, Generic[Item]):
    """Claims due rows, turns them into mails and settles them; each step is committed when it returns."""

    lease_seconds = 900.0

    def __init__(self, connection: database.Connection, *, table: str, item: type[Item], today: date) -> None:
        """``table`` names the statements: lock_due_, claim_, hold_, settle_ and reopen_refused_<table>."""
        self._connection = connection
        self._table = table
        self._today = today
        self._outbox = Outbox(connection=connection, table=table, item=item, lease_seconds=self.lease_seconds)

    @abstractmethod
    def _draft(self, item: Item) -> Writer | str | None:
        """Read the facts while the recipient is held; return what writes the mail, or why it is cancelled.

        None: the row is not this claim's any more, or gone.
        """

    def claim(self) -> tuple[Item | None, Lease]:
        """Claim a due row, untried before retried, oldest first; None that a night of a later day has queued.

        One at a time: a lease then covers one message, and two runs share what is due.
        """
        items, lease = self._outbox.claim(f"lock_due_{self._table}", {"today": self._today})
        return (items[0] if items else None), lease

    def draft(self, item: Item) -> OutgoingMessage | Settlement | None:
        """Write the mail from the facts of this moment, or settle the row and return how, because none is to be sent.

        None: not now. The recipient is locked by another session, or the row was taken over or deleted. The recipient
        is held meanwhile: a review or a correction comes before this, or after it and finds what it did.
        """

        def decide() -> Writer | Settlement | None:
            unsent: Settlement | None
            address = self._hold(item)
            draft = self._draft(item) if address is not None else None
            if address is None or draft is None:
                return None
            if isinstance(draft, str):
                unsent = Settlement(status="cancelled", error=draft, count_attempt=False)
            elif (unsent := _unsendable(address)) is None:
                return draft
            return unsent if self._outbox.settle(item, unsent) is Answer.SETTLED else None

        try:
            draft = persist(self._connection, decide, lock_timeout_ms=HOLD_MS, tries=1)
        except database.CONTENTION:
            self.settle(item, replace(RELEASED, delay_seconds=HELD_DELAY_SECONDS))
            return None
        return draft if draft is None or isinstance(draft, Settlement) else draft()

    def settle(self, item: Item, settlement: Settlement) -> Answer:
        """Write what became of a mail; SETTLED or LOST. It insists: a known outcome must be kept.

        If the database went away, it stores the outcome over one new connection and then raises the error.
        """
        try:
            return self._outbox.settle(item, settlement)
        except psycopg.Error as error:
            if database.is_lost(error):
                with suppress(CertjobError), database.connect_again(self._connection) as fresh:
                    replace(self._outbox, connection=fresh).settle(item, settlement)
            raise

    def refuse(self, item: Item, error: NotifyError, *, address: str) -> Answer:
        """Fail a row that a server refused, if the address is still the recipient's: SETTLED, or LOST.

        RAISED: the row is pending. The address was corrected meanwhile, or another session has locked the recipient,
        perhaps to correct it.
        """
        refused = Settlement(status="failed", error=str(error), code=error.code)

        def try_again(settlement: Settlement) -> Answer:
            answer = self._outbox.settle(item, settlement)
            return Answer.RAISED if answer is Answer.SETTLED else answer

        def write() -> Answer:
            if self._hold(item) == address:
                return self._outbox.settle(item, refused)
            return try_again(replace(refused, status="pending", count_attempt=False))

        try:
            return persist(self._connection, write, lock_timeout_ms=HOLD_MS, tries=1)
        except database.CONTENTION:
            return try_again(replace(refused, status="pending", delay_seconds=HELD_DELAY_SECONDS))

    def reopen_refused(self, items: Sequence[Item], *, delay_seconds: float) -> None:
        """Put rows that were refused and should not be failed back to pending; each in its own commit."""
        for item in items:
            row = {"id": item.id, "delay_seconds": delay_seconds}
            reopen = partial(database.execute, self._connection, f"reopen_refused_{self._table}", row)
            persist(self._connection, reopen)

    def _hold(self, item: Item) -> str | None:
        """Lock the recipient and return the address, empty without one; None: gone. It waits for other sessions."""
        address: str | None = database.fetch_value(self._connection, f"hold_{self._table}", {"id": item.id})
        return address


def _unsendable(address: str) -> Settlement | None:
    """Return how to settle a mail to this address, to which none can go; None: one can. No server is asked."""
    try:
        parse_address(address)
    except ValueError as error:
        problem, code = f"the e-mail address {error}; correct it", Cause.WRONG_ADDRESS
        if not address:
            problem, code = "no address", Cause.NO_ADDRESS
        return Settlement(status="failed", error=problem, code=code, count_attempt=False)
    return None
