"""The values that rules and services pass to each other."""

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any, dataclass_transform
from uuid import UUID

LAST_PORTAL_DAY = date(2099, 12, 31)
"""The last day that the filter of the portal's view accepts."""

NOT_CERTIFIED = date.min
"""Stored as ``certified_until`` of a mentor who is not certified."""

OWN_PAUSE_REASON = "certification_expired"
"""The reason of certjob's own pause. certjob changes no other pause."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _value(*, order: bool = False) -> Any:
    """Frozen for the type checker only, because a run builds millions, and a frozen one takes three times as long."""
    return dataclass(slots=True, kw_only=True, unsafe_hash=True, order=order)


class Status(StrEnum):
    """The status of a certificate, as stored in ``certificates.status``."""

    RECORDED = "recorded"
    """Not reviewed yet."""
    UPCOMING = "upcoming"
    VALID = "valid"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    RENEWED = "renewed"
    REVOKED = "revoked"


IN_FORCE = frozenset({Status.VALID, Status.EXPIRING})


class PauseChange(StrEnum):
    """A change of certjob's own pause."""

    OPEN = "open"
    LIFT = "lift"


class Change(StrEnum):
    """A kind of surprising changes, as stored in ``guard_counts.what``. `holds.held_changes` has the limits."""

    REMOVAL = "removals"
    """certjob pauses or hides the mentor, or the last certified day moves earlier."""
    RETURN = "returns"
    """A mentor who was not certified returns, without a certificate that was issued recently."""
    VISIBILITY = "visibility"
    """Another return, or a push to a contact ID that has replaced another one."""
    REMINDER = "reminders"
    """A new reminder about a certificate that no review has seen."""


class Effect(StrEnum):
    """The effect of a surprising change, as stored in ``still_due.reason``. The most harmful come first."""

    REVOKED = "revoked"
    LEFT = "left"
    ENDED = "ended"
    """The mentor is paused or hidden."""
    ENDS_SOON = "ends_soon"
    """The last certified day moves earlier, to within SOON_DAYS."""
    ENDS_EARLIER = "ends_earlier"
    NEW_CONTACT = "new_contact"
    RETURNS = "returns"
    REMINDER = "reminder"


@_value()
class Organisation:
    """The rules of an organisation."""

    id: UUID
    slug: str
    has_portal: bool
    reminder_thresholds: tuple[int, ...]
    """Days before the last day; negative days are after it. Empty: no reminders, and no ``expiring``."""
    optional_kinds: frozenset[str]


@_value()
class Certificate:
    """A row of ``certificates``."""

    id: UUID
    kind: str
    issued_on: date
    expires_on: date
    """The last day in force."""
    revoked: bool
    status: Status = Status.RECORDED
    """The stored status, from the last review."""
    unseen: bool = False
    """Whether no review of the mentor has seen this kind with this last day."""


@_value()
class OpenPause:
    """A pause that has not been lifted."""

    id: UUID
    reason: str
    lapsed_kinds: frozenset[str] = frozenset()
    """The kinds that were not in force while certjob's pause was open."""


@_value()
class Mentor:
    """A mentor with all facts that a decision needs."""

    id: UUID
    member_no: str
    organisation: Organisation
    left: bool
    portal_visible: bool | None
    """The last desired visibility; None: unknown, so the next value is pushed in any case."""
    has_contact: bool
    """Whether there is a contact ID."""
    contact_replaced: bool = False
    """Whether the contact ID is another one than at an earlier review."""
    certified_until: date | None
    """As stored by the last review; None: never reviewed."""
    decided_visible: bool | None = None
    """Whether the last review decided that the mentor may be visible; None: never reviewed."""
    seen: frozenset[str] = frozenset()
    """The kinds and last days of certificates that a review has seen, as ``seen_key`` writes them."""
    due_by_calendar: bool
    """Whether the stored day of the next review stands. False: a fact has changed, or there was no review."""
    certificates: tuple[Certificate, ...]
    open_pauses: tuple[OpenPause, ...]


@_value(order=True)
class Reminder:
    """A due reminder: the key of ``cert_notification_log``, and the last day that the mail states."""

    cert_id: UUID
    threshold_days: int
    expires_on: date


@_value()
class Transition:
    """A certificate's change of status."""

    certificate_id: UUID
    from_status: Status
    to_status: Status


@_value()
class Surprise:
    """The change of a decision that the last review did not foresee."""

    change: Change | None = None
    """A change of visibility."""
    change_after_gap: Change | None = None
    """The same if the last review is too old to foresee anything."""
    effect: Effect = Effect.REMINDER
    """What these do."""
    reminders: tuple[Reminder, ...] = ()
    """Due reminders about certificates that no review has seen. Some may be queued already."""


NO_SURPRISE = Surprise()


@_value()
class Decision:
    """The state of one mentor today, as changes of the stored state, and the day of the next review."""

    mentor_id: UUID
    member_no: str
    organisation: Organisation
    transitions: tuple[Transition, ...]
    seen: tuple[str, ...] | None
    """The value of ``Mentor.seen`` to store; None: no change."""
    pause: PauseChange | None
    own_pause_id: UUID | None
    """certjob's open pause before the change."""
    lapsed_kinds: frozenset[str] | None
    """The kinds to store with certjob's open pause; None: no change."""
    reminders: tuple[Reminder, ...]
    """All reminders due today, also those that are queued or sent already."""
    certified_until: date
    """The last day on which the mentor is certified if no fact changes, or NOT_CERTIFIED."""
    stored_until: date | None
    """The same as stored by the last review; None: there was none."""
    visible: bool
    """The desired visibility. It has no meaning without a portal."""
    push: bool
    """Whether the portal must be told the visibility or its last day."""
    nothing_to_hide: bool
    """Whether a hide is not needed, because the mentor has had neither a contact ID nor a certificate."""
    new_last_day: bool
    """Whether the mentor stays visible until another day."""
    surprise: Surprise
    without_certificate: bool
    """Whether the mentor is active, but has never had a kind that counts."""
    review_on: date | None
    """The next day on which a decision can differ if no fact changes; None: never."""
