"""What a coordinator's daily page tells, as values."""

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordinator:
    """Whom a digest is for, and what it is to cover."""

    id: UUID
    organisation_id: UUID
    organisation_slug: str
    organisation_name: str
    full_name: str | None
    email: str
    locale: str
    covers_from: datetime
    """The end of the last sent digest; without one, a week ago."""
    told_on: date
    """The day of the last sent digest; without one, a week ago."""
    covers_until: datetime
    """Everything that was committed before this moment can be seen now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lapse:
    """Why a mentor is not certified: a kind that has no certificate in force."""

    kind: str
    ended_on: date | None
    """The last day that it was in force; None: it was revoked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PausedMentor:
    """Newly paused by certjob."""

    name: str
    member_no: str
    lapses: tuple[Lapse, ...]
    reopened: bool
    """A person had lifted the pause, and the mentor was still not certified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedMentor:
    """certjob's pause was lifted."""

    name: str
    member_no: str
    still_paused: bool
    """Another pause is open, such as a coordinator's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiringCertificate:
    """In force, and not for long."""

    name: str
    member_no: str
    kind: str
    expires_on: date
    days_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPush:
    """A row of ``portal_alerts``."""

    name: str
    member_no: str
    visible: bool
    """The wanted value: False = may still be visible."""
    sentence: str
    """The design's own, in English."""
    wanted_at: datetime
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UndeliveredReminder:
    """A reminder that is ``failed``."""

    name: str
    member_no: str
    expires_on: date
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Everything one page tells."""

    coordinator: Coordinator
    today: date
    paused: tuple[PausedMentor, ...]
    returned: tuple[ReturnedMentor, ...]
    expiring: tuple[ExpiringCertificate, ...]
    newly_expiring: bool
    """One of ``expiring`` has come within 30 days since the last digest."""
    pending: tuple[PendingPush, ...]
    undelivered: tuple[UndeliveredReminder, ...]

    @property
    def has_news(self) -> bool:
        """Whether there is anything that the last digest has not told already, or that still needs a person."""
        return bool(self.paused or self.returned or self.newly_expiring or self.pending or self.undelivered)
