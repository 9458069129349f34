"""What needs attention: pushes that wait, reminders and digests that were not delivered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.alert_reasons import PushState


@dataclass(frozen=True, slots=True, kw_only=True)
class PushAlert(PushState):
    """An open portal push that a person should know about."""

    mentor_id: UUID
    organisation_id: UUID
    member_no: str
    full_name: str
    """The member number where there is no name."""
    visible: bool
    """What the portal should show."""
    sentence: str
    """The design's words for it; the dashboard shows the same."""
    error: str | None
    """The technical reason."""
    calls: int
    """Calls made to the portal for it."""
    wanted_at: datetime
    last_failed_at: datetime | None
    next_attempt_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedReminder:
    """A reminder that was not delivered: refused, until somebody corrects something, or put off for over a day."""

    reminder_id: int
    mentor_id: UUID
    organisation_id: UUID
    member_no: str
    full_name: str
    threshold_days: int
    cert_id: UUID
    expires_on: date
    error: str | None
    code: str | None
    attempts: int
    queued_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDigest:
    """A coordinator's daily mail that was not delivered and is not tried again before the next night."""

    digest_id: int
    coordinator_id: UUID
    organisation_id: UUID
    full_name: str
    """The address where there is no name."""
    digest_on: date
    error: str | None
    code: str | None
    attempts: int
    queued_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """How people call an organisation, and how commands do."""

    id: UUID
    slug: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """All that needs a person, at one moment."""

    pushes: Sequence[PushAlert] = ()
    """Hides first, then oldest first."""
    reminders: Sequence[FailedReminder] = ()
    """Oldest first."""
    digests: Sequence[FailedDigest] = ()
    """Oldest first."""
    organisations: Mapping[UUID, Organisation] = field(default_factory=dict)
    """All there are: a page says whose mentor it is only if there are several."""

    def __len__(self) -> int:
        return len(self.pushes) + len(self.reminders) + len(self.digests)

    @property
    def exit_code(self) -> int:
        """3 while there is anything, else 0."""
        return 3 if len(self) else 0


def read_alerts(connection: Connection, *, today: date) -> Alerts:
    """Read what needs a person: four short statements, nothing is kept open between or after them."""
    pushes = database.fetch(connection, "read_alert_details", into=PushAlert)
    reminders = database.fetch(connection, "read_failed_reminders", {"today": today}, into=FailedReminder)
    digests = database.fetch(connection, "read_failed_digests", into=FailedDigest)
    organisations = database.fetch(connection, "read_organisation_names", into=Organisation)
    return Alerts(
        pushes=pushes,
        reminders=reminders,
        digests=digests,
        organisations={each.id: each for each in organisations},
    )


def read_documents(connection: Connection, *, today: date) -> dict[str, list[dict[str, Any]]]:
    """Read the same for a program: rows as the statements return them, pushes as the app's dashboard sees them."""
    return {
        "alerts": database.fetch(connection, "read_portal_alerts", into=dict),
        "failed_reminders": database.fetch(connection, "read_failed_reminders", {"today": today}, into=dict),
        "failed_digests": database.fetch(connection, "read_failed_digests", into=dict),
    }
