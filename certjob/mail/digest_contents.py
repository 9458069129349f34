"""What a coordinator's daily page tells, as values."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from hashlib import sha256
from uuid import UUID

from certjob.domain.alert_reasons import PushState

EXPIRING_WITHIN_DAYS = 30
TOLD_AGAIN_AFTER_DAYS = 7
"""What still waits for a person is a reason for another page after so many days; with other news it comes along."""


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
    since: datetime
    """From when on to look for what happened; surely before the last sent digest was written."""
    told_on: date
    """The day as of which the last sent digest was written; without one, a week ago."""
    told: Sequence[str]
    """The lines that the last sent digest told, or that were told before and could be found again."""
    read_at: datetime
    """When this was read."""


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
    line: str
    """What this is known by, from one digest to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReturnedMentor:
    """certjob's pause was lifted."""

    name: str
    member_no: str
    still_paused: bool
    """Another pause is open, such as a coordinator's."""
    without_certificate: bool
    """Nothing is on record any more that could end: nobody watches this mentor."""
    line: str
    """What this is known by, from one digest to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiringCertificate:
    """In force, and not for long."""

    name: str
    member_no: str
    kind: str
    expires_on: date
    days_left: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPush(PushState):
    """A row of ``portal_alerts``."""

    name: str
    member_no: str
    visible: bool
    """The wanted value: False = may still be visible."""
    sentence: str
    """The design's own, in English."""
    wanted_at: datetime
    error: str | None
    line: str
    """What this is known by, from one digest to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UndeliveredReminder:
    """A reminder that is ``failed``."""

    name: str
    member_no: str
    expires_on: date
    error: str
    code: str | None
    """Why, as a FailureCode."""
    line: str
    """What this is known by, from one digest to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """Everything one page tells."""

    coordinator: Coordinator
    today: date
    paused: tuple[PausedMentor, ...]
    """Not told before."""
    returned: tuple[ReturnedMentor, ...]
    """Not told before."""
    expiring: tuple[ExpiringCertificate, ...]
    pending: tuple[PendingPush, ...]
    """All that wait, told before or not."""
    undelivered: tuple[UndeliveredReminder, ...]
    """All that wait for a correction, told before or not."""
    told: tuple[str, ...]
    """The lines that need not be told again once this page was sent."""

    @property
    def has_news(self) -> bool:
        """Whether there is anything that was not told, or that still needs a person a week after it was told."""
        coordinator = self.coordinator
        known = frozenset(coordinator.told)
        stands = [item.line for item in self.pending] + [item.line for item in self.undelivered]
        newly_expiring = (
            certificate.expires_on > coordinator.told_on + timedelta(days=EXPIRING_WITHIN_DAYS)
            for certificate in self.expiring
        )
        return (
            bool(self.paused or self.returned)
            or any(newly_expiring)
            or any(line not in known for line in stands)
            or (bool(stands) and (self.today - coordinator.told_on).days >= TOLD_AGAIN_AFTER_DAYS)
        )

    @property
    def fingerprint(self) -> str:
        """Return what is the same for two pages that tell the same, so that nobody takes one for a copy of another."""
        ends = [f"{item.member_no}:{item.kind}:{item.expires_on}" for item in self.expiring]
        text = "\n".join([self.today.isoformat(), *sorted(self.told), *sorted(self.coordinator.told), *ends])
        return sha256(text.encode()).hexdigest()[:8]
