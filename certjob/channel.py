"""What every way of handing a message over has in common: the message and the interface."""

from dataclasses import dataclass
from datetime import date
from typing import Protocol
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingMessage:
    """One rendered message for one person."""

    to: str
    """The address as the database has it, unchecked."""
    subject: str
    text: str
    html: str
    message_id: str
    """With its angle brackets; the same on every repeat."""
    idempotency_key: str
    """The same on every repeat; a webhook's receiver uses it to drop the second copy."""
    locale: str
    kind: str
    """What the message is: ``reminder``, ``digest``, ``preview`` or ``test``."""
    repeat: bool
    """Whether an earlier try may have arrived already."""
    mentor_id: UUID | None = None
    """Whom a reminder is about."""
    threshold_days: int | None = None
    """Days before the expiry; negative = after it."""
    expires_on: date | None = None
    reply_to: str | None = None
    """Where an answer goes, unchecked: whoever has a question presses "reply". None: to the sender."""


class Channel(Protocol):
    """A way out for messages; not shared between threads."""

    @property
    def worst_case_seconds(self) -> float:
        """The longest that one ``send`` can take."""

    def send(self, message: OutgoingMessage) -> None:
        """Hand one message over, in one try; returns once it was accepted.

        Raises RecipientRefusedError, RecipientDeferredError, OutcomeUnknownError or ChannelDownError; no text of theirs
        holds the recipient's address or a secret.
        """

    def close(self) -> None:
        """Let go of connections; the next ``send`` opens them again. Takes 5 seconds at most and raises nothing."""
