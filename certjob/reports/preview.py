"""One mentor's reminder before it is sent: which one it is, how it will read, and a copy of it for somebody else."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from uuid import UUID, uuid4

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import OWN_PAUSE_REASON, Mentor, Reminder
from certjob.domain.projection import after
from certjob.errors import ConfigurationError, UnknownMentorError
from certjob.mail.channels.notify import send_alone
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.messages.content import Recipient
from certjob.mail.messages.templates import Templates
from certjob.mail.reminder_mail import read_recipient, reminder_message
from certjob.reports.logged_reminders import LoggedReminder, read_logged_reminders

PREFIXES = {"nb": "[forhåndsvisning]", "nn": "[førehandsvising]", "en": "[preview]"}
"""Before the subject of a copy, so that nobody takes it for a reminder of their own."""

NOBODY = UUID(int=0)
"""The mentor of a copy: a webhook must not find the real one by it, and no mentor can have this id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A reminder as it will go out."""

    message: OutgoingMessage
    sends_on: date
    """The day whose count of days it has."""
    explanation: str
    """Which reminder it is, and what keeps it from being sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A reminder and the day on which it is, or would be, sent."""

    reminder: Reminder
    sends_on: date

    def is_sent(self, log: "_Log") -> bool:
        row = log.get((self.reminder.cert_id, self.reminder.threshold_days))
        return row is not None and row.was_sent(self.reminder.expires_on)


_Log = Mapping[tuple[UUID, int], LoggedReminder]


def preview_reminder(
    connection: Connection,
    mentor_id: UUID,
    *,
    today: date,
    threshold_days: int | None,
    locale: str | None,
    templates: Templates,
) -> Preview:
    """Return a mentor's reminder as it will go out; writes nothing, and works on a read-only connection.

    Without a threshold it is the one that is due, or the next one; without a locale it is in the mentor's own. Raises
    UnknownMentorError, ConfigurationError when there is no such reminder, TemplateError when it cannot be written.
    """
    with database.read_only_snapshot(connection):
        recipient = read_recipient(connection, mentor_id)
        rows = read_logged_reminders(connection, mentor_id)
    if recipient is None:
        text = f"mentor {mentor_id} does not exist any more"
        raise UnknownMentorError(text)
    log = {(row.certificate_id, row.threshold_days): row for row in rows}
    choice = _choose(recipient.mentor, log, today=today, threshold=threshold_days)
    row = log.get((choice.reminder.cert_id, choice.reminder.threshold_days))
    message = reminder_message(
        choice.reminder,
        replace(recipient, paused=_paused(recipient.mentor, choice.sends_on), locale=locale or recipient.locale),
        key="preview",
        repeat=row is not None and row.reminder == choice.reminder and row.status != "sent" and row.maybe_sent,
        today=choice.sends_on,
        templates=templates,
    )
    if templates.broken is not None:
        raise templates.broken
    which = "the next reminder" if threshold_days is None else f"the reminder for the threshold {threshold_days}"
    return Preview(
        message=message,
        sends_on=choice.sends_on,
        explanation=_explain(choice, row, recipient, today=today, which=which),
    )


def send_copy(preview: Preview, channel: Channel, *, to: str) -> None:
    """Send a copy that cannot be mistaken for the reminder, to somebody else, and close the channel.

    It has its own Message-ID and leaves no trace in the database. Raises NotifyError.
    """
    message = preview.message
    copy = replace(
        message,
        to=to,
        to_name=None,
        subject=f"{PREFIXES[message.locale]} {message.subject}",
        idempotency_key=f"preview-{uuid4().hex}",
        kind="preview",
        mentor_id=NOBODY,
    )
    send_alone(channel, copy)


def _choose(mentor: Mentor, log: _Log, *, today: date, threshold: int | None) -> _Choice:
    """Return the reminder that is asked for. Raises ConfigurationError, whose text says why there is none."""
    organisation = mentor.organisation
    who = f"{mentor.member_no} of {organisation.slug}"
    if mentor.left:
        message = f"{who} has left, and those who have left are not reminded"
        raise ConfigurationError(message)
    if not organisation.reminder_thresholds:
        message = f"{organisation.slug} reminds nobody"
        raise ConfigurationError(message, next_step=f"`certjob organisation set {organisation.slug} --thresholds 30,7`")
    if not mentor.certificates:
        message = f"{who} has no certificate, and so nothing to be reminded of"
        raise ConfigurationError(message)
    if threshold is None:
        coming = [choice for choice in _choices(mentor, today) if choice.sends_on >= today and not choice.is_sent(log)]
        if not coming:
            message = f"{who} has no upcoming reminder"
            raise ConfigurationError(message, next_step="use --threshold to preview a past one")
        return min(coming, key=lambda choice: (choice.sends_on, choice.reminder.expires_on, choice.reminder))
    if threshold not in organisation.reminder_thresholds:
        known = ",".join(map(str, organisation.reminder_thresholds))
        message = f"--threshold {threshold} is none of {organisation.slug}'s, which are {known}"
        raise ConfigurationError(message)
    fitting = [choice for choice in _choices(mentor, today) if choice.reminder.threshold_days == threshold]
    if not fitting:
        message = f"{who} gets no reminder for the threshold {threshold}: their certificates are renewed or revoked"
        raise ConfigurationError(message)
    return min(fitting, key=lambda choice: (choice.sends_on < today, abs(choice.sends_on - today)))


def _choices(mentor: Mentor, today: date) -> Iterator[_Choice]:
    """Yield the reminders that are due today, and each on the first day on which it is due, past or to come."""
    for certificate in mentor.certificates:
        expiry = certificate.expires_on.toordinal()
        days = {today.toordinal(), certificate.issued_on.toordinal()}
        days.update(expiry - threshold for threshold in mentor.organisation.reminder_thresholds)
        for day in (date.fromordinal(day) for day in sorted(days) if 1 <= day <= date.max.toordinal()):
            threshold = rules.due_threshold(certificate, mentor, day)
            if threshold is not None:
                cert_id, expires_on = certificate.id, certificate.expires_on
                reminder = Reminder(cert_id=cert_id, threshold_days=threshold, expires_on=expires_on)
                yield _Choice(reminder=reminder, sends_on=day)


def _paused(mentor: Mentor, day: date) -> bool:
    """Whether certjob's own pause will be open that day: the night reviews before it sends."""
    reviewed = after(mentor, rules.decide(mentor, day))
    return any(pause.reason == OWN_PAUSE_REASON for pause in reviewed.open_pauses)


def _explain(choice: _Choice, row: LoggedReminder | None, recipient: Recipient, *, today: date, which: str) -> str:
    day = choice.sends_on
    if day == today:
        text = f"the reminder that is due today, for the threshold {choice.reminder.threshold_days}"
    elif day > today:
        text = f"{which}, due {day}"
    else:
        text = f"{which}; its day was {day}"
    if row is not None and row.was_sent(choice.reminder.expires_on):
        text += "; it has been sent"
    elif row is not None and row.reminder == choice.reminder and row.status == "failed":
        text += f"; it could not be delivered: {row.error}"
    if not recipient.email:
        text += "; it cannot be sent: the mentor has no e-mail address"
    return text
