"""Coordinators' digests: at most one mail a day with recent changes and open problems.

A digest is queued if there is news since the last sent one, and written when it is sent. After three nights without a
mail server, the coordinator gets one digest. If a run dies before it queues, the next run queues.
"""

from dataclasses import dataclass
from datetime import date, tzinfo
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import persist
from certjob.mail.digest_contents import Digest, read_digest, read_recipients
from certjob.mail.message import OutgoingMessage, sign_key
from certjob.mail.messages.templates import Draft, Templates
from certjob.mail.steps import ClaimedMail, Mails


def queue_digests(connection: database.Connection, *, today: date, organisation: str | None = None) -> int:
    """Queue today's digest for each coordinator with news, of one organisation (a slug) or of all; commit.

    Returns the number of queued digests. A coordinator gets one a day.
    """

    def queue() -> int:
        due = (each for each in read_recipients(connection, today=today, slug=organisation) if each.may_get_one(today))
        ids = [each.id for each in due if read_digest(connection, each, today=today).has_news]
        return database.execute(connection, "queue_digests", {"ids": ids, "today": today}) if ids else 0

    return persist(connection, queue)


def reopen_digests(connection: database.Connection) -> int:
    """Make undelivered digests due, because a person has asked for it; commit. Returns their number."""
    return persist(connection, lambda: database.execute(connection, "reopen_digests"))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedDigest(ClaimedMail):
    """A claimed row of ``coordinator_digests``."""

    coordinator_id: UUID
    digest_on: date


class DigestMail(Mails[QueuedDigest]):
    """Digests for the mail stage."""

    item = QueuedDigest
    lock_due_statement = "lock_due_digests"
    claim_statement = "claim_digests"
    lock_recipient_statement = "lock_digest_and_coordinator"
    settle_statement = "settle_digests"

    def __init__(
        self,
        connection: database.Connection,
        *,
        today: date,
        templates: Templates,
        zone: tzinfo,
        app_url: str = "",
        operator_address: str = "",
    ) -> None:
        """Digests show times in ``zone``, link to ``app_url`` and name the operators' address."""
        super().__init__(connection, today=today, templates=templates)
        self._setting = {"zone": zone, "app_url": app_url, "operator_address": operator_address}

    def draft(self, item: QueuedDigest) -> Draft | str | None:
        """Read the current contents and store their keys, with which the next digest is compared; see ``Mails.draft``.

        A run that queues the row again waits until this is committed.
        """
        recipients = read_recipients(self.connection, today=self.today, coordinator_id=item.coordinator_id)
        if not recipients:
            return None
        digest = read_digest(self.connection, recipients[0], today=self.today)
        if not (digest.has_news and digest.coordinator.may_get_one(self.today)):
            return "nothing to tell"
        reported = {"id": item.id, "token": item.claim_token, "keys": sorted(digest.keys)}
        if not database.execute(self.connection, "note_reported", reported):
            return None
        key = digest_key(
            item.id,
            item.attempts,
            secret=self.secret,
            coordinator_id=item.coordinator_id,
            digest_on=item.digest_on,
        )
        return draft_digest(digest, key=key, repeat=item.maybe_sent, **self._setting)


def draft_digest(digest: Digest, *, key: str, repeat: bool, **setting: Any) -> Draft:
    """Return a digest as a mail. ``setting``: the time zone and the addresses; see ``digest_words``."""
    coordinator = digest.coordinator
    message = OutgoingMessage(
        to=coordinator.email,
        to_name=coordinator.full_name,
        idempotency_key=key,
        locale=coordinator.locale,
        kind="digest",
        repeat=repeat,
        sender=coordinator.sender,
        reply_to=coordinator.contact_email,
        list_name=f"digest.{coordinator.organisation_slug}",
    )
    return Draft(message=message, words=digest.words(repeat=repeat, **setting))


def digest_key(digest_id: int, attempts: int, *, secret: bytes, coordinator_id: UUID, digest_on: date) -> str:
    """Return the idempotency key of an attempt, because one may report more than the one before.

    After a restore, another digest can have the same id, but not the same key.
    """
    return f"digest-{digest_id}-{attempts}-{sign_key(secret, coordinator_id, digest_on)}"
