"""What needs attention, in full: the list that certjob/review/attention.py counts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.causes import Advice, advise_on_message, advise_on_push
from certjob.reports.open_pushes import OpenPush, read_open_pushes, resync_command
from certjob.review.held import StoredHold, read_held


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMentor:
    """One of those whom a guard holds."""

    mentor_id: UUID
    member_no: str
    full_name: str
    """The member number where there is no name."""
    may_be_shown: bool
    """To be hidden, and perhaps still shown on the portal."""


@dataclass(slots=True, kw_only=True)
class HeldAlert(StoredHold):
    """An organisation for which the guards hold something back."""

    some: Sequence[HeldMentor]
    """Those whose ids are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewProblem:
    """A mentor whom no run could review."""

    mentor_id: UUID
    organisation_id: UUID
    organisation: str
    member_no: str
    full_name: str
    """The member number where there is no name."""
    error: str
    """Why."""
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMail:
    """Reminders, or digests, that have waited for more than a day."""

    what: str
    """``reminders`` or ``digests``."""
    number: int
    since: datetime
    """Since when the oldest has waited."""
    error: str | None
    """Why the mail stage stopped last; None: it has not stopped in the last runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownContact:
    """A contact that the portal shows, and that is no mentor's of an organisation with a portal."""

    contact_id: UUID
    since: datetime
    """When a reading first found it."""
    mentor_id: UUID | None
    """Whose it is in an organisation without a portal; None: nobody's."""
    member_no: str | None
    full_name: str | None
    organisation: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OldReading:
    """The portal was read once, and not in the last three days."""

    read_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedReminder:
    """A reminder that was not delivered: refused, until somebody corrects something, or deferred for over a day."""

    reminder_id: int
    mentor_id: UUID
    organisation_id: UUID
    organisation: str
    member_no: str
    full_name: str
    threshold_days: int
    cert_id: UUID
    expires_on: date
    error: str | None
    code: str | None
    attempts: int
    queued_at: datetime
    next_attempt_at: datetime | None
    """None: it is not tried again before somebody corrects something."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDigest:
    """A coordinator's daily mail that was not delivered and is not tried again before the next night."""

    digest_id: int
    coordinator_id: UUID
    organisation_id: UUID
    organisation: str
    full_name: str
    """The address where there is no name."""
    digest_on: date
    error: str | None
    code: str | None
    attempts: int
    queued_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    """All that needs attention, at one moment."""

    held: Sequence[HeldAlert] = ()
    """Who may be shown on a portal first."""
    never_reviewed: Sequence[ReviewProblem] = ()
    """Oldest first, as the following."""
    pushes: Sequence[OpenPush] = ()
    """Hides first, then oldest first."""
    unknown_contacts: Sequence[UnknownContact] = ()
    """Oldest first."""
    portal_not_read: Sequence[OldReading] = ()
    """One, or none."""
    failed_reminders: Sequence[FailedReminder] = ()
    failed_digests: Sequence[FailedDigest] = ()
    waiting_mail: Sequence[WaitingMail] = ()

    def __len__(self) -> int:
        return sum(len(getattr(self, each.name)) for each in fields(self))

    def to_document(self) -> dict[str, list[dict[str, Any]]]:
        """Return the same for a program; each push and each mail has in words why it waits and what to do."""
        document: dict[str, list[dict[str, Any]]] = asdict(self)
        for held, row in zip(self.held, document["held"], strict=True):
            row["command"] = held.command
            del row["mentor_ids"]
        document["alerts"] = document.pop("pushes")
        for push, row in zip(self.pushes, document["alerts"], strict=True):
            next_try = f"after {push.next_attempt_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
            resync = resync_command(push.member_no, push.organisation)
            row.update(_in_words(advise_on_push(push), resync=resync, next_try=next_try))
        for row in document["failed_reminders"]:
            row.update(_in_words(advise_on_message(row["code"])))
        for row in document["failed_digests"]:
            row.update(_in_words(advise_on_message(row["code"]), message="digest"))
        return document


def _in_words(advice: Advice, **details: Any) -> dict[str, str]:
    return {"code": advice.cause, "why": advice.why, "what_to_do": advice.advise(**details)}


def read_alerts(connection: Connection, *, today: date) -> Alerts:
    """Read what needs attention: short statements, nothing is kept open between or after them."""
    return Alerts(
        held=list(_read_held(connection)),
        never_reviewed=database.fetch(connection, "read_review_problems", into=ReviewProblem),
        pushes=read_open_pushes(connection),
        unknown_contacts=database.fetch(connection, "read_unknown_contacts", into=UnknownContact),
        portal_not_read=database.fetch(connection, "read_old_reading", into=OldReading),
        failed_reminders=database.fetch(connection, "read_failed_reminders", {"today": today}, into=FailedReminder),
        failed_digests=database.fetch(connection, "read_failed_digests", into=FailedDigest),
        waiting_mail=database.fetch(connection, "read_waiting_mail", into=WaitingMail),
    )


def _read_held(connection: Connection) -> Iterator[HeldAlert]:
    for held in read_held(connection):
        which = {"ids": list(held.mentor_ids), "may_be_shown": held.may_be_shown}
        some = database.fetch(connection, "read_held_mentors", which, into=HeldMentor)
        yield HeldAlert(**asdict(held), some=some)
