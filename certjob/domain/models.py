"""The values that rules and services pass to each other: frozen, no behaviour beyond what follows from their fields."""

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from uuid import UUID

LAST_PORTAL_DAY = date(2099, 12, 31)
"""The filter of the portal's view does not reach further."""

NOT_CERTIFIED = date.min
"""Stored as ``certified_until`` of a mentor who is not certified today."""

OWN_PAUSE_REASON = "certification_expired"
"""The only pause that certjob opens and lifts."""


class Status(StrEnum):
    """What a certificate is on a given day; the texts are stored in ``certificates.status``."""

    RECORDED = "recorded"
    UPCOMING = "upcoming"
    VALID = "valid"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    RENEWED = "renewed"
    REVOKED = "revoked"


IN_FORCE = frozenset({Status.VALID, Status.EXPIRING})


class PauseChange(StrEnum):
    """What certjob does to its own pause of a mentor."""

    OPEN = "open"
    LIFT = "lift"


class Change(StrEnum):
    """A change that the guard counts; the texts are stored in ``held_reviews.what`` and ``guard_counts.what``."""

    REMOVAL = "pauses"
    """certjob pauses or hides the mentor. A hide because of a person's pause is none."""
    RETURN = "returns"
    """The mentor becomes visible, or is active again where there is no portal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Organisation:
    """An organisation's rules, as far as decisions need them."""

    id: UUID
    slug: str
    has_portal: bool
    reminder_thresholds: tuple[int, ...]
    """Days before the expiry; negative = after it. Empty: no reminders and no ``expiring``."""
    optional_kinds: frozenset[str]
    """Kinds whose expiry pauses nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One row of ``certificates``."""

    id: UUID
    kind: str
    issued_on: date
    expires_on: date
    """The last day in force."""
    revoked: bool
    status: Status = Status.RECORDED
    """As stored: what certjob decided last, ``recorded`` if it never saw the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPause:
    """A pause that nobody has lifted yet."""

    id: UUID
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mentor:
    """Everything about one mentor that a decision reads."""

    id: UUID
    member_no: str
    organisation: Organisation
    left: bool
    portal_visible: bool | None
    """The last value wanted on the portal; None: unknown, push whatever is wanted now."""
    has_contact: bool
    """Whether the app has the mentor's contact on the portal."""
    certified_until: date | None
    """As the last review stored it; None: not reviewed yet."""
    due_by_calendar: bool
    """Whether the last review named the day of the next one; False: a fact has changed since, or there was none."""
    certificates: tuple[Certificate, ...]
    open_pauses: tuple[OpenPause, ...]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Reminder:
    """A reminder that is due: the key of ``cert_notification_log`` and the date it is about."""

    cert_id: UUID
    threshold_days: int
    expires_on: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A certificate's change of status."""

    certificate_id: UUID
    from_status: Status
    to_status: Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The state one mentor should be in today, as changes against what is stored, and the day to look again."""

    mentor_id: UUID
    member_no: str
    organisation: Organisation
    transitions: tuple[Transition, ...]
    pause: PauseChange | None
    own_pause_id: UUID | None
    """certjob's open pause before the change, if any."""
    reminders: tuple[Reminder, ...]
    """Every reminder due today, also those already queued or sent: the upsert knows which are new."""
    certified_until: date
    """The last day on which the mentor is certified if no fact changes, whatever pauses are open."""
    visible: bool
    """The wanted portal value; meaningless for an organisation without a portal."""
    push: bool
    """Whether the wanted portal value differs from the last wanted one and must be pushed."""
    moved_from: date | None
    """The last visible day that was wanted so far, if the push only moves that day; the mentor stays visible."""
    change: Change | None
    """What the guard counts, if anything."""
    foreseen: bool
    """Whether the last review foresaw the change."""
    without_certificate: bool
    """Not paused and not left, but without any certificate that counts."""
    review_on: date | None
    """The next day on which anything can change by itself; None: never."""
