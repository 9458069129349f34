"""The steps of one mail: claimed, written from the current facts, settled. Each function commits before it returns.

``Mails`` has what differs between reminders and digests.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, partial
from typing import ClassVar, Generic, TypeVar

import psycopg

from certjob import database
from certjob.database import Connection, persist
from certjob.domain.addresses import parse_address
from certjob.errors import Cause, NotifyError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.templates import Draft, Templates
from certjob.outbox.claims import RELEASED, Answer, ClaimedRow, Outbox, Settlement, store_again

LEASE_SECONDS = 900.0
"""Of a claimed mail. No channel takes longer for one attempt."""
LOCK_TIMEOUT_MS = 500
"""Maximum wait for the lock on a recipient. Another process may be writing another mail to the same person."""
LOCKED_DELAY_SECONDS = 60.0
"""Delay of a mail after another session has locked the recipient, perhaps to change the facts."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedMail(ClaimedRow):
    """The columns of a claimed reminder or digest."""

    maybe_sent: bool
    """The outcome of an earlier attempt is unknown, so the message must say that it may be a repeat."""
    accepted_since: bool
    """The server has rejected this mail, and accepted another one since."""


Item = TypeVar("Item", bound=ClaimedMail)


class Mails(ABC, Generic[Item]):
    """Reminders or digests: their statements, and the drafts of their texts."""

    item: type[Item]
    lock_due_statement: ClassVar[str]
    claim_statement: ClassVar[str]
    lock_recipient_statement: ClassVar[str]
    settle_statement: ClassVar[str]
    lease_seconds = LEASE_SECONDS

    def __init__(self, connection: Connection, *, today: date, templates: Templates) -> None:
        self.connection = connection
        self.today = today
        self.templates = templates
        self.outbox = Outbox(
            connection=connection,
            item=self.item,
            claim_statement=self.claim_statement,
            settle_statement=self.settle_statement,
            lease_seconds=self.lease_seconds,
        )

    @cached_property
    def secret(self) -> bytes:
        """The key of the Message-IDs."""
        return read_secret(self.connection)

    @abstractmethod
    def draft(self, item: Item) -> Draft | str | None:
        """Read the facts while the recipient is locked, and return a draft, or the reason to cancel the mail.

        Returns None if the row was deleted or another process has claimed it.
        """


def read_secret(connection: Connection) -> bytes:
    """Return the key of the Message-IDs, which `certjob db migrate` has created."""
    secret: bytes = database.fetch_value(connection, "read_mail_key")
    return secret


def claim(mails: Mails[Item]) -> Item | None:
    """Claim one due row, untried rows first, then the oldest. Rows that a later day's run has queued are left out.

    A lease covers only one message, because two runs share the work.
    """
    items = mails.outbox.claim(mails.lock_due_statement, {"today": mails.today})
    return items[0] if items else None


def prepare(mails: Mails[Item], item: Item) -> OutgoingMessage | Settlement | None:
    """Return the mail. If it must not be sent, settle the row and return the settlement.

    Returns None if another session has locked the recipient, or if the row was deleted or claimed again. The recipient
    is locked while the facts are read. A review or a correction is committed before that, or sees the outcome. No lock
    is held while the text is written, because templates can be slow.
    """
    try:
        with database.transaction(mails.connection, lock_timeout_ms=LOCK_TIMEOUT_MS):
            address = _lock_recipient(mails, item, mails.connection)
            draft = mails.draft(item) if address is not None else None
            if address is None or draft is None:
                return None
            unsent = _unsendable(address)
            if isinstance(draft, str):
                unsent = Settlement(status="cancelled", error=draft, count_attempt=False)
            if unsent is not None:
                return unsent if mails.outbox.store(item, unsent) is Answer.SETTLED else None
    except database.CONTENTION:
        settle(mails, item, replace(RELEASED, delay_seconds=LOCKED_DELAY_SECONDS))
        return None
    except psycopg.Error as error:
        if database.is_lost(error):  # the mail was not sent, so its repeat must not say that it may have been
            settle(mails, item, RELEASED)
        raise
    assert isinstance(draft, Draft)  # noqa: S101 - a cancelled mail is settled above
    return draft.write(mails.templates)


def settle(mails: Mails[Item], item: Item, settlement: Settlement) -> Answer:
    """Store the outcome of a mail, with retries, and return SETTLED or LOST."""
    return _store(mails, partial(Outbox.settle, item=item, settlement=settlement))


def reject(mails: Mails[Item], item: Item, error: NotifyError, *, address: str) -> Answer:
    """Mark a rejected row as failed if the recipient still has this address, and return SETTLED or LOST.

    Otherwise the row is pending again and the answer is RAISED: the address was corrected, or another session has
    locked the recipient, perhaps to correct it.
    """
    rejected = Settlement(status="failed", error=str(error), code=error.code)

    def store(outbox: Outbox[Item]) -> Answer:
        try:
            with database.transaction(outbox.connection, lock_timeout_ms=LOCK_TIMEOUT_MS):
                if _lock_recipient(mails, item, outbox.connection) == address:
                    return outbox.store(item, rejected)
                answer = outbox.store(item, replace(rejected, status="pending", count_attempt=False))
        except database.CONTENTION:
            answer = outbox.settle(item, replace(rejected, status="pending", delay_seconds=LOCKED_DELAY_SECONDS))
        return Answer.RAISED if answer is Answer.SETTLED else answer

    return _store(mails, store)


def retry_rejected(mails: Mails[Item]) -> None:
    """Make all mails due that the server has rejected, because it accepts mail again."""
    persist(mails.connection, lambda: database.execute(mails.connection, "retry_rejected_mails"))


def _store(mails: Mails[Item], store: Callable[[Outbox[Item]], Result]) -> Result:
    """Store an outcome. If the connection to the database is lost, store it over a new one and then raise the error."""
    try:
        return store(mails.outbox)
    except psycopg.Error as error:
        if database.is_lost(error):
            store_again(mails.outbox.connection, lambda fresh: store(replace(mails.outbox, connection=fresh)))
        raise


def _lock_recipient(mails: Mails[Item], item: Item, connection: Connection) -> str | None:
    """Return the recipient's address, "" without one, or None if the row was deleted."""
    address: str | None = database.fetch_value(connection, mails.lock_recipient_statement, {"id": item.id})
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
