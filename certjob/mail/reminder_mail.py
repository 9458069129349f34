"""Reminders as mails, checked and written with the current facts."""

from dataclasses import dataclass
from datetime import date, timedelta
from uuid import UUID

from certjob import database
from certjob.domain import rules
from certjob.domain.models import OWN_PAUSE_REASON, Reminder
from certjob.facts import reading
from certjob.mail.message import OutgoingMessage, sign_key
from certjob.mail.messages.content import Recipient, reminder_words
from certjob.mail.messages.templates import Draft
from certjob.mail.reminders import adopt_reminders
from certjob.mail.steps import ClaimedMail, Mails


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedReminder(ClaimedMail):
    """A claimed row of ``cert_notification_log``."""

    mentor_id: UUID
    threshold_days: int
    expires_on: date

    def reminder(self, cert_id: UUID) -> Reminder:
        """Return the reminder as the rules know it, about this certificate."""
        return Reminder(cert_id=cert_id, threshold_days=self.threshold_days, expires_on=self.expires_on)


class ReminderMail(Mails[QueuedReminder]):
    """Reminders for the mail stage."""

    item = QueuedReminder
    lock_due_statement = "lock_due_reminders"
    claim_statement = "claim_reminders"
    lock_recipient_statement = "lock_reminded_mentor"
    settle_statement = "settle_reminders"

    def draft(self, item: QueuedReminder) -> Draft | str | None:
        """Apply the rules again; see ``Mails.draft``."""
        row = {"id": item.id, "token": item.claim_token}
        recipient = read_recipient(self.connection, item.mentor_id)
        found = database.fetch(self.connection, "read_reminded_certificate", row)
        if recipient is None or not found:
            return None
        certificates = recipient.mentor.certificates
        if found[0][0] not in {each.id for each in certificates}:  # it may have been deleted and entered again
            same_day = [each for each in certificates if each.expires_on == item.expires_on]
            adopt_reminders(self.connection, [(item.mentor_id, item.reminder(each.id)) for each in same_day])
            found = database.fetch(self.connection, "read_reminded_certificate", row)
        ((cert_id, is_mailed),) = found
        due = item.reminder(cert_id)
        reason = rules.cancel_reason(due, recipient.mentor, self.today) or ("mailed already" if is_mailed else None)
        if reason is None:
            key = reminder_key(
                item.id,
                secret=self.secret,
                mentor_id=item.mentor_id,
                threshold_days=due.threshold_days,
                expires_on=due.expires_on,
            )
            return draft_reminder(due, recipient, key=key, repeat=item.maybe_sent, today=self.today)
        if reason == "not due" or due.expires_on - timedelta(days=due.threshold_days) > self.today:
            # A run of a later day has queued it, and put off the next review to a later day still.
            database.execute(self.connection, "review_mentor", {"id": item.mentor_id})
        return reason


def read_recipient(connection: database.Connection, mentor_id: UUID) -> Recipient | None:
    """Return a mentor with everything that a reminder needs, or None if the mentor was deleted."""
    mentors = reading.read(connection, [mentor_id], lock=False).mentors
    rows = database.fetch(connection, "read_recipient", {"mentor_id": mentor_id}, into=dict)
    if not mentors or not rows:
        return None
    paused = any(pause.reason == OWN_PAUSE_REASON for pause in mentors[0].open_pauses)
    return Recipient(mentor=mentors[0], paused=paused, **rows[0])


def draft_reminder(due: Reminder, recipient: Recipient, *, key: str, repeat: bool, today: date) -> Draft:
    """Return the reminder with the days left on ``today``. ``key`` is the same on every repeat."""
    message = OutgoingMessage(
        to=recipient.email or "",
        to_name=recipient.full_name,
        idempotency_key=key,
        locale=recipient.locale,
        kind="reminder",
        mentor_id=recipient.mentor.id,
        threshold_days=due.threshold_days,
        expires_on=due.expires_on,
        repeat=repeat,
        reply_to=recipient.contact_email,
        sender=recipient.sender,
    )
    return Draft(message=message, words=reminder_words(due, recipient, today=today, repeat=repeat))


def reminder_key(log_id: int, *, secret: bytes, mentor_id: UUID, threshold_days: int, expires_on: date) -> str:
    """Return the idempotency key of a reminder, which is the same on every repeat for the same last day.

    After a restore, another reminder can have the same id, but not the same key.
    """
    return f"reminder-{log_id}-{sign_key(secret, mentor_id, threshold_days, expires_on)}"
