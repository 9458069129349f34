"""The reminders of one mentor in the log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Reminder


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedReminder:
    """A row of the log."""

    id: int
    """The Message-ID begins with ``<certjob-reminder-`` and this number."""
    threshold_days: int
    certificate_id: UUID
    expires_on: date
    status: str
    attempts: int
    queued_at: datetime
    sent_at: datetime | None
    maybe_sent: bool
    error: str | None
    code: str | None
    next_attempt_at: datetime
    is_claimed: bool
    earlier: Sequence[Mapping[str, Any]]
    """The same row for earlier last days."""

    @property
    def reminder(self) -> Reminder:
        """The reminder as the rules know it."""
        return Reminder(cert_id=self.certificate_id, threshold_days=self.threshold_days, expires_on=self.expires_on)

    def was_sent(self, expires_on: date) -> bool:
        """Return whether it was sent for this last day."""
        told = [(each["expires_on"], each["status"]) for each in self.earlier]
        return (str(expires_on), "sent") in [*told, (str(self.expires_on), self.status)]


def read_logged_reminders(connection: Connection, mentor_id: UUID) -> list[LoggedReminder]:
    """Return the reminders in the order of the last day."""
    return database.fetch(connection, "read_logged_reminders", {"mentor_id": mentor_id}, into=LoggedReminder)
