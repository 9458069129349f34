"""What needs attention, in full: the list that certjob/review/attention.py counts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.alert_reasons import AlertReason, why_message_waits, why_push_waits
from certjob.review.held import read_held
from certjob.views.open_pushes import OpenPush, read_open_pushes, resync_command


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMentor:
    """One of those whom a guard holds."""

    mentor_id: UUID
    member_no: str
    full_name: str
    """The member number where there is no name."""
    may_be_shown: bool
    """To be hidden, and perhaps still shown on the portal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAlert:
    """An organisation for which the guards hold something back."""

    organisation_id: UUID
    organisation: str
    """The slug."""
    name: str
    what: str
    """``pauses``, ``returns``, ``reminders`` or ``portal``."""
    since: datetime
    reason: str
    """The guard's words."""
    command: str
    """What lets it through."""
    mentors: int
    """How many mentors would change."""
    ended_by_calendar: int
    """Of them, whose day had come although no fact was changed: their certificates have really ended."""
    facts_changed: int
    """Of them, whose facts were changed since the last review: the import."""
    may_be_shown: int
    """Of them, who should be hidden, and whom the portal may still show."""
    some: Sequence[HeldMentor]
    """At most 50 of them, those who may be shown first."""


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
class Contradiction:
    """A contact that one organisation wants visible and another one hidden; certjob keeps it hidden."""

    contact_id: UUID
    visible_for: Sequence[str]
    """Organisation and member number, such as ``nhf M1001``."""
    hidden_for: Sequence[str]


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
    contradictory: Sequence[Contradiction] = ()
    unknown_contacts: Sequence[UnknownContact] = ()
    """Oldest first."""
    portal_not_read: Sequence[OldReading] = ()
    """One, or none."""
    reminders: Sequence[FailedReminder] = ()
    digests: Sequence[FailedDigest] = ()
    waiting_mail: Sequence[WaitingMail] = ()

    def __len__(self) -> int:
        return sum(len(getattr(self, each.name)) for each in fields(self))

    def to_document(self) -> dict[str, list[dict[str, Any]]]:
        """Return the same for a program; each push and each mail has in words why it waits and what to do."""
        document: dict[str, list[dict[str, Any]]] = asdict(self)
        for push, row in zip(self.pushes, document["pushes"], strict=True):
            next_try = f"after {push.next_attempt_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
            resync = resync_command(push.member_no, push.organisation)
            row.update(_in_words(why_push_waits(push), resync=resync, next_try=next_try))
        for row in document["reminders"]:
            row.update(_in_words(why_message_waits(row["code"])))
        for row in document["digests"]:
            row.update(_in_words(why_message_waits(row["code"]), message="digest"))
        names = {"pushes": "alerts", "reminders": "failed_reminders", "digests": "failed_digests"}
        return {names.get(name, name): rows for name, rows in document.items()}


def _in_words(reason: AlertReason, **details: Any) -> dict[str, str]:
    return {"why": reason.why(), "what_to_do": reason.advise(**details)}


def read_alerts(connection: Connection, *, today: date) -> Alerts:
    """Read what needs attention: short statements, nothing is kept open between or after them."""
    return Alerts(
        held=list(_read_held(connection)),
        never_reviewed=database.fetch(connection, "read_review_problems", into=ReviewProblem),
        pushes=read_open_pushes(connection),
        contradictory=database.fetch(connection, "read_contradictions", into=Contradiction),
        unknown_contacts=database.fetch(connection, "read_unknown_contacts", into=UnknownContact),
        portal_not_read=database.fetch(connection, "read_old_reading", into=OldReading),
        reminders=database.fetch(connection, "read_failed_reminders", {"today": today}, into=FailedReminder),
        digests=database.fetch(connection, "read_failed_digests", into=FailedDigest),
        waiting_mail=database.fetch(connection, "read_waiting_mail", into=WaitingMail),
    )


def _read_held(connection: Connection) -> Iterator[HeldAlert]:
    for held in read_held(connection):
        stored = asdict(held)
        slug, ids = stored.pop("slug"), stored.pop("mentor_ids")
        shown = set(ids[: held.may_be_shown])
        some = [
            HeldMentor(mentor_id=mentor_id, member_no=member_no, full_name=full_name, may_be_shown=mentor_id in shown)
            for mentor_id, member_no, full_name in database.fetch(connection, "read_held_mentors", {"ids": ids})
        ]
        yield HeldAlert(**stored, organisation=slug, command=held.command, some=some)
