"""The rows of one table that become mails: claimed, written from the current facts, and settled.

Reminders and digests differ in their statements and in ``_draft``.
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

LOCK_TIMEOUT_MS = 500
"""Maximum wait for the lock on a recipient. Another process may be writing another mail to the same person."""
LOCKED_DELAY_SECONDS = 60.0
"""Delay of a mail after another session has locked the recipient, perhaps to change the facts."""


Writer = Callable[[], OutgoingMessage]
"""Writes a mail from facts that were read. It holds no lock, because templates can be slow."""


class MailQueue(ABC, Generic[Item]):
    """Claims due rows, turns them into mails and settles them. Each method commits before it returns."""

    lease_seconds = 900.0

    def __init__(self, connection: database.Connection, *, table: str, item: type[Item], today: date) -> None:
        """Use the statements lock_due_, claim_, hold_, settle_ and reopen_refused_<table>."""
        self._connection = connection
        self._table = table
        self._today = today
        self._outbox = Outbox(
            connection=connection,
            item=item,
            claim_statement=f"claim_{table}",
            settle_statement=f"settle_{table}",
            lease_seconds=self.lease_seconds,
        )

    @abstractmethod
    def _draft(self, item: Item) -> Writer | str | None:
        """Read the facts while the recipient is locked, and return the writer, or the reason to cancel the mail.

        Returns None if the row was deleted or another process has claimed it.
        """

    def claim(self) -> tuple[Item | None, Lease]:
        """Claim one due row, untried rows first, then the oldest. Rows that a later day's run has queued are left out.

        A lease covers only one message, because two runs share the work.
        """
        items, lease = self._outbox.claim(f"lock_due_{self._table}", {"today": self._today})
        return (items[0] if items else None), lease

    def draft(self, item: Item) -> OutgoingMessage | Settlement | None:
        """Return the mail. If it must not be sent, settle the row and return the settlement.

        Returns None if another session has locked the recipient, or if the row was deleted or claimed again. The
        recipient is locked while the facts are read. A review or a correction is committed before that, or sees the
        outcome.
        """

        def decide() -> Writer | Settlement | None:
            address = self._lock_recipient(item)
            draft = self._draft(item) if address is not None else None
            if address is None or draft is None:
                return None
            if not isinstance(draft, str):
                unsent = _unsendable(address)
                if unsent is None:
                    return draft
            else:
                unsent = Settlement(status="cancelled", error=draft, count_attempt=False)
            return unsent if self._outbox.settle(item, unsent) is Answer.SETTLED else None

        try:
            draft = persist(self._connection, decide, lock_timeout_ms=LOCK_TIMEOUT_MS, tries=1)
        except database.CONTENTION:
            self.settle(item, replace(RELEASED, delay_seconds=LOCKED_DELAY_SECONDS))
            return None
        return draft if draft is None or isinstance(draft, Settlement) else draft()

    def settle(self, item: Item, settlement: Settlement) -> Answer:
        """Store the outcome of a mail, with retries, and return SETTLED or LOST.

        If the connection to the database is lost, store it over a new one and then raise the error.
        """
        try:
            return self._outbox.settle(item, settlement)
        except psycopg.Error as error:
            if database.is_lost(error):
                with suppress(CertjobError), database.connect_again(self._connection) as fresh:
                    replace(self._outbox, connection=fresh).settle(item, settlement)
            raise

    def refuse(self, item: Item, error: NotifyError, *, address: str) -> Answer:
        """Mark a refused row as failed if the recipient still has this address, and return SETTLED or LOST.

        Otherwise the row is pending again and the answer is RAISED: the address was corrected, or another session has
        locked the recipient, perhaps to correct it.
        """
        refused = Settlement(status="failed", error=str(error), code=error.code)

        def retry(settlement: Settlement) -> Answer:
            answer = self._outbox.settle(item, settlement)
            return Answer.RAISED if answer is Answer.SETTLED else answer

        def write() -> Answer:
            if self._lock_recipient(item) == address:
                return self._outbox.settle(item, refused)
            return retry(replace(refused, status="pending", count_attempt=False))

        try:
            return persist(self._connection, write, lock_timeout_ms=LOCK_TIMEOUT_MS, tries=1)
        except database.CONTENTION:
            return retry(replace(refused, status="pending", delay_seconds=LOCKED_DELAY_SECONDS))

    def reopen_refused(self, items: Sequence[Item], *, delay_seconds: float) -> None:
        """Make refused rows pending again, each in its own transaction."""
        for item in items:
            row = {"id": item.id, "delay_seconds": delay_seconds}
            persist(self._connection, partial(database.execute, self._connection, f"reopen_refused_{self._table}", row))

    def _lock_recipient(self, item: Item) -> str | None:
        """Return the recipient's address, "" without one, or None if the row was deleted."""
        address: str | None = database.fetch_value(self._connection, f"hold_{self._table}", {"id": item.id})
        return address


def _unsendable(address: str) -> Settlement | None:
    """Return the settlement of a mail to a missing or invalid address, otherwise None."""
    try:
        parse_address(address)
    except ValueError as error:
        problem, code = f"the e-mail address {error}; correct it", Cause.WRONG_ADDRESS
        if not address:
            problem, code = "no address", Cause.NO_ADDRESS
        return Settlement(status="failed", error=problem, code=code, count_attempt=False)
    return None
