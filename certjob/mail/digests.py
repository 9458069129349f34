"""Coordinators' digests: at most one page a day that tells a coordinator what happened and what needs attention.

A digest is queued when something may have happened since the last sent page, and written when it is sent: three nights
without a mail server lead to one digest. A run that dies before it queues loses nothing: the next one asks again.
"""

from dataclasses import dataclass
from datetime import date, tzinfo
from uuid import UUID

from certjob import database
from certjob.database import persist
from certjob.mail.digest_contents import (
    EXPIRING_WITHIN_DAYS,
    FIRST_PAGE_DAYS,
    OVERLAP_DAYS,
    Coordinator,
    Digest,
    read_digest,
)
from certjob.mail.message import OutgoingMessage, key_hash
from certjob.mail.messages.templates import Templates
from certjob.mail.queue import MailQueue, Writer
from certjob.outbox.claims import ClaimedRow


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedDigest(ClaimedRow):
    """A claimed row of ``coordinator_digests``."""

    maybe_sent: bool


def queue_digests(connection: database.Connection, *, today: date, organisation_id: UUID | None = None) -> int:
    """Queue today's digest for each coordinator, or those of one organisation, who may have something to hear.

    Returns how many were queued, committed; the mail stage sends them.
    """
    parameters = {
        "today": today,
        "organisation_id": organisation_id,
        "overlap_days": OVERLAP_DAYS,
        "first_page_days": FIRST_PAGE_DAYS,
        "within_days": EXPIRING_WITHIN_DAYS,
    }
    return persist(connection, lambda: database.execute(connection, "queue_digests", parameters))


class DigestMail(MailQueue[QueuedDigest]):
    """The mail stage's queue of digests."""

    def __init__(
        self,
        connection: database.Connection,
        *,
        today: date,
        zone: tzinfo,
        app_url: str = "",
        operator_address: str = "",
        templates: Templates,
    ) -> None:
        """Times are written in ``zone``. The page links to ``app_url`` and names the address of the operators."""
        super().__init__(connection, table="digests", item=QueuedDigest, today=today)
        self._zone = zone
        self._links = {"app_url": app_url, "operator_address": operator_address}
        self._templates = templates

    def _draft(self, item: QueuedDigest) -> Writer | str | None:
        """Read what there is to say by now, and store its keys: the next page is compared with them.

        See ``MailQueue``. A run that queues the row meanwhile waits for it.
        """
        digest = read_digest(self._connection, item.id, today=self._today, zone=self._zone)
        if digest is None:
            return None
        if not digest.has_news:
            return "nothing to tell"
        reported = {"id": item.id, "token": item.claim_token, "keys": sorted(digest.keys)}
        if not database.execute(self._connection, "note_reported", reported):
            return None
        return lambda: self._message(item, digest)

    def _message(self, item: QueuedDigest, digest: Digest) -> OutgoingMessage:
        coordinator = digest.coordinator
        rendered = self._templates.render(
            "digest",
            slug=coordinator.organisation_slug,
            words=digest.words(repeat=item.maybe_sent, **self._links),
        )
        return OutgoingMessage(
            to=coordinator.email,
            to_name=coordinator.full_name,
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
            idempotency_key=digest_key(item, coordinator),
            locale=coordinator.locale,
            kind="digest",
            repeat=item.maybe_sent,
            sender=coordinator.sender,
            reply_to=coordinator.contact_email,
            list_name=f"digest.{coordinator.organisation_slug}",
        )


def digest_key(item: QueuedDigest, coordinator: Coordinator) -> str:
    """Return the idempotency key of one attempt. After a restore another digest can have the same id, not the same key.

    Each attempt has its own, because it may say more than the one before; a possible repeat says so.
    """
    return f"digest-{item.id}-{item.attempts}-{key_hash(coordinator.id, coordinator.digest_on)}"
