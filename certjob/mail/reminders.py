"""CertificationReminderService: each mentor is reminded once per threshold, and only while it is still true.

A reminder is queued by an upsert in the transaction of the state it follows from. Before it is sent, under the claim,
the rules are asked again on the facts of that moment.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import persist, persist_in_one_trip
from certjob.domain import rules
from certjob.domain.models import Certificate, Decision, Mentor, Reminder, Status
from certjob.errors import FailureCode
from certjob.facts import reading
from certjob.outbox.claims import Answer, Lease, Outbox

LEASE_SECONDS = 900.0
HELD_DELAY_SECONDS = 60.0
"""When to look again at a reminder whose mentor somebody was just changing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedReminder:
    """A claimed row of ``cert_notification_log``."""

    id: int
    mentor_id: UUID
    threshold_days: int
    cert_id: UUID
    expires_on: date
    attempts: int
    """Claims that led to an attempt, this one included."""
    claim_token: UUID
    maybe_sent: bool
    """An earlier attempt's outcome is unknown: the message must say that it may be a repeat."""
    cycle: int
    """How many dates the row was about before; the same again for a date that comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """The mentor as the facts are now, with what a message says about the organisation."""

    mentor: Mentor
    full_name: str | None
    email: str | None
    locale: str
    paused: bool
    """certjob's own pause is open."""
    organisation_name: str
    contact_email: str | None
    contact_phone: str | None
    renewal_url: str | None

    def certificate(self, cert_id: UUID) -> Certificate | None:
        """The mentor's certificate with that id, if it still exists."""
        return next((c for c in self.mentor.certificates if c.id == cert_id), None)


class CertificationReminderService:
    """Queues, claims, checks and settles reminders; the mail stage sends them."""

    def __init__(self, connection: database.Connection, *, run_id: UUID, lease_seconds: float = LEASE_SECONDS) -> None:
        self._connection = connection
        self._run_id = run_id
        self._outbox = Outbox(
            connection,
            table="reminders",
            item=QueuedReminder,
            lease_seconds=lease_seconds,
            columns=("ids", "tokens", "statuses", "delays", "uncounts", "errors", "codes", "maybe_sent"),
        )

    def queue(self, decisions: Iterable[Decision]) -> list[UUID]:
        """Queue the due reminders that are new, inside the caller's transaction; return the mentor of each.

        A more urgent one makes older unsent ones about the same certificate superseded; what was mailed about a
        certificate that was entered anew counts for the new one.
        """
        arrays = _arrays(decisions)
        if not arrays["mentor_ids"]:
            return []
        database.execute(self._connection, "adopt_reminders", arrays)
        queued = database.fetch(self._connection, "queue_reminders", arrays | {"run_id": self._run_id})
        if queued:
            database.execute(
                self._connection,
                "supersede_reminders",
                {
                    "mentor_ids": [row[0] for row in queued],
                    "thresholds": [row[1] for row in queued],
                    "cert_ids": [row[2] for row in queued],
                },
            )
        return [row[0] for row in queued]

    def find_new(self, decisions: Iterable[Decision]) -> list[tuple[UUID, Reminder]]:
        """Return (mentor, reminder) of those that ``queue`` would queue; writes nothing."""
        decided = list(decisions)
        arrays = _arrays(decided)
        if not arrays["mentor_ids"]:
            return []
        new = set(database.fetch(self._connection, "find_new_reminders", arrays))
        return [
            (decision.mentor_id, reminder)
            for decision in decided
            for reminder in decision.reminders
            if (decision.mentor_id, reminder.threshold_days, reminder.cert_id) in new
        ]

    def find_without_address(self, mentor_ids: Iterable[UUID]) -> set[UUID]:
        """Return those of these mentors whom no reminder can reach."""
        ids = list(mentor_ids)
        return (
            {row[0] for row in database.fetch(self._connection, "find_without_address", {"ids": ids})} if ids else set()
        )

    def claim(self, *, today: date | None = None, limit: int = 100) -> tuple[list[QueuedReminder], Lease]:
        """Claim due reminders: untried before retried, oldest first.

        With ``today`` without those that the night of the day after has queued: whoever goes on past midnight would
        find them not due and cancel them.
        """
        return self._outbox.claim_by("lock_due_reminders", {"limit": limit, "today": today})

    def release(self, reminders: Sequence[QueuedReminder]) -> None:
        """Give claimed reminders back; their attempts were none."""
        self._outbox.release(reminders)

    def recipient(self, reminder: QueuedReminder) -> Recipient | None:
        """Read the mentor as it is now; None if the mentor is gone."""
        return read_recipient(self._connection, reminder.mentor_id)

    @staticmethod
    def cancel_reason(reminder: QueuedReminder, recipient: Recipient, today: date) -> str | None:
        """Ask the rules again, on today's facts; None = still right to send."""
        due = Reminder(cert_id=reminder.cert_id, threshold_days=reminder.threshold_days, expires_on=reminder.expires_on)
        return rules.cancel_reason(due, recipient.mentor, today)

    def settle(
        self,
        reminder: QueuedReminder,
        status: str,
        *,
        error: str | None = None,
        code: FailureCode | None = None,
        delay_seconds: float = 0.0,
        uncount: bool = False,
        maybe_sent: bool = False,
    ) -> bool:
        """Write what became of a claimed reminder, committed on return; False if its lease was lost."""
        parameters: dict[str, object] = {
            "id": reminder.id,
            "token": reminder.claim_token,
            "status": status,
            "error": error,
            "code": code,
            "delay_seconds": delay_seconds,
            "uncount": uncount,
            "maybe_sent": maybe_sent,
        }
        return bool(persist_in_one_trip(self._connection, "settle_reminder", parameters))

    def cancel(self, reminder: QueuedReminder, *, today: date) -> Answer:
        """Cancel a claimed reminder if the rules still say so; see ``MailQueue``.

        The mentor is held meanwhile: a review that found the reminder right and pending, just before, would not ask
        again.
        """

        def write() -> Answer:
            if not self._hold_mentor(reminder):
                return self._put_back(reminder, Answer.HELD, delay_seconds=HELD_DELAY_SECONDS)
            recipient = self.recipient(reminder)
            reason = None if recipient is None else self.cancel_reason(reminder, recipient, today)
            if reason is None:
                return self._put_back(reminder, Answer.RAISED)
            if self._outbox.settle_one(reminder, "cancelled", error=reason, uncount=True) is Answer.LOST:
                return Answer.LOST
            if reason == "not due" or reminder.expires_on - timedelta(days=reminder.threshold_days) > today:
                # Queued by a night of a later day, which has noted when to look next: a day after this one's.
                database.execute(self._connection, "review_mentor", {"id": reminder.mentor_id})
            return Answer.SETTLED

        return persist(self._connection, write)

    def fail(self, reminder: QueuedReminder, *, error: str, code: FailureCode, address: str, uncount: bool) -> Answer:
        """Fail a claimed reminder if ``address`` is still the mentor's; see ``MailQueue``.

        The mentor is held meanwhile: a correction reopens only what has failed by then.
        """

        def write() -> Answer:
            if not self._hold_mentor(reminder):
                return self._put_back(
                    reminder, Answer.HELD, error=error, code=code, delay_seconds=HELD_DELAY_SECONDS, uncount=uncount
                )
            recipient = self.recipient(reminder)
            if recipient is not None and (recipient.email or "") != address:
                return self._put_back(reminder, Answer.RAISED)
            return self._outbox.settle_one(reminder, "failed", error=error, code=code, uncount=uncount)

        return persist(self._connection, write)

    def reopen_refused(self, reminders: Sequence[QueuedReminder], *, delay_seconds: float) -> None:
        """Put reminders that were refused and should not be failed back to pending."""
        ids = [reminder.id for reminder in reminders]

        def reopen() -> None:
            database.execute(self._connection, "lock_reminders", {"ids": ids})
            parameters = {"ids": ids, "delay_seconds": delay_seconds}
            database.execute(self._connection, "reopen_refused_reminders", parameters)

        persist(self._connection, reopen)

    def _hold_mentor(self, reminder: QueuedReminder) -> bool:
        """Lock the mentor before the reminder, as a review does; False when somebody else holds it, or it is gone."""
        return bool(database.fetch(self._connection, "hold_mentor", {"id": reminder.mentor_id}))

    def _put_back(
        self,
        reminder: QueuedReminder,
        answer: Answer,
        *,
        error: str | None = None,
        code: FailureCode | None = None,
        delay_seconds: float = 0.0,
        uncount: bool = True,
    ) -> Answer:
        """Leave the reminder pending; the answer says why, or that its lease was lost."""
        settled = self._outbox.settle_one(
            reminder, "pending", error=error, code=code, delay_seconds=delay_seconds, uncount=uncount
        )
        return settled if settled is Answer.LOST else answer


def read_recipient(connection: database.Connection, mentor_id: UUID) -> Recipient | None:
    """Read one mentor with everything a message needs; None if the mentor is gone."""
    rows = database.fetch(connection, "read_recipient", {"mentor_id": mentor_id}, into=_RecipientRow)
    return rows[0].recipient() if rows else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _RecipientRow:
    """One row of ``read_recipient``."""

    id: UUID
    member_no: str
    full_name: str | None
    email: str | None
    locale: str
    left: bool
    portal_visible: bool | None
    organisation_id: UUID
    slug: str
    organisation_name: str
    has_portal: bool
    reminder_thresholds: list[int]
    optional_kinds: list[str]
    contact_email: str | None
    contact_phone: str | None
    renewal_url: str | None
    paused: bool
    certificates: list[list[Any]]

    def recipient(self) -> Recipient:
        organisation = reading.organisation_from_row(
            (self.organisation_id, self.slug, self.has_portal, self.reminder_thresholds, self.optional_kinds)
        )
        certificates = tuple(
            Certificate(
                id=UUID(row_id),
                kind=kind,
                issued_on=date.fromisoformat(issued_on),
                expires_on=date.fromisoformat(expires_on),
                revoked=revoked,
                status=Status(status),
            )
            for row_id, kind, issued_on, expires_on, revoked, status in self.certificates
        )
        mentor = Mentor(
            id=self.id,
            member_no=self.member_no,
            organisation=organisation,
            left=self.left,
            portal_visible=self.portal_visible,
            certificates=certificates,
            open_pauses=(),
        )
        return Recipient(
            mentor=mentor,
            full_name=self.full_name,
            email=self.email,
            locale=self.locale,
            paused=self.paused,
            organisation_name=self.organisation_name,
            contact_email=self.contact_email,
            contact_phone=self.contact_phone,
            renewal_url=self.renewal_url,
        )


def _arrays(decisions: Iterable[Decision]) -> dict[str, object]:
    due = [(decision.mentor_id, reminder) for decision in decisions for reminder in decision.reminders]
    return {
        "mentor_ids": [mentor_id for mentor_id, _ in due],
        "thresholds": [reminder.threshold_days for _, reminder in due],
        "cert_ids": [reminder.cert_id for _, reminder in due],
        "expiries": [reminder.expires_on for _, reminder in due],
    }
