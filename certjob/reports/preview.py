"""One mentor's reminder as it will be sent: the one that is due today, or the next one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import OWN_PAUSE_REASON, Mentor, Reminder
from certjob.domain.projection import after
from certjob.errors import ConfigurationError, UnknownMentorError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.templates import Templates
from certjob.mail.reminder_mail import read_recipient, reminder_message
from certjob.reports.logged_reminders import LoggedReminder, read_logged_reminders

_Log = Mapping[tuple[UUID, int], LoggedReminder]
"""The reminders of the log by certificate and threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A reminder as it will be sent."""

    message: OutgoingMessage
    sends_on: date
    """The message counts its days from this date."""
    explanation: str
    """Which reminder it is, and what keeps it from being sent."""


def preview_reminder(
    connection: Connection,
    mentor_id: UUID,
    *,
    today: date,
    threshold_days: int | None,
    locale: str | None,
    templates: Templates,
) -> Preview:
    """Return a mentor's reminder; write nothing.

    Without a threshold it is the one that is due, or the next one; without a locale it is in the mentor's own. Raises
    UnknownMentorError, ConfigurationError if there is no such reminder, TemplateError if it cannot be rendered.
    """
    with database.read_only_snapshot(connection):
        recipient = read_recipient(connection, mentor_id)
        rows = read_logged_reminders(connection, mentor_id)
    if recipient is None:
        text = f"mentor {mentor_id} does not exist any more"
        raise UnknownMentorError(text)
    log = {(row.certificate_id, row.threshold_days): row for row in rows}
    day, reminder = _choose(recipient.mentor, log, today=today, threshold=threshold_days)
    row = log.get((reminder.cert_id, reminder.threshold_days))
    about_it = row if row is not None and row.reminder == reminder else None
    message = reminder_message(
        reminder,
        replace(recipient, paused=_will_be_paused(recipient.mentor, day), locale=locale or recipient.locale),
        key="preview",
        repeat=about_it is not None and about_it.status != "sent" and about_it.maybe_sent,
        today=day,
        templates=templates,
    )
    if templates.broken is not None:
        raise templates.broken
    explanation = _describe(reminder, day, today=today, is_next=threshold_days is None)
    if row is not None and row.was_sent(reminder.expires_on):
        explanation += "; it has been sent"
    elif about_it is not None and about_it.status == "failed":
        explanation += f"; it could not be delivered: {about_it.error}"
    if not recipient.email:
        explanation += "; it cannot be sent: the mentor has no e-mail address"
    return Preview(message=message, sends_on=day, explanation=explanation)


def _choose(mentor: Mentor, log: _Log, *, today: date, threshold: int | None) -> tuple[date, Reminder]:
    """Return the requested reminder and its day. Raises ConfigurationError, whose text says why there is none."""
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
        coming = [each for each in _due_days(mentor, today) if each[0] >= today and not _was_sent(each[1], log)]
        if not coming:
            message = f"{who} has no upcoming reminder"
            raise ConfigurationError(message, next_step="use --threshold to preview a past one")
        return min(coming, key=lambda each: (each[0], each[1].expires_on, each[1]))
    if threshold not in organisation.reminder_thresholds:
        known = ",".join(map(str, organisation.reminder_thresholds))
        message = f"--threshold {threshold} is none of {organisation.slug}'s, which are {known}"
        raise ConfigurationError(message)
    fitting = [each for each in _due_days(mentor, today) if each[1].threshold_days == threshold]
    if not fitting:
        message = f"{who} gets no reminder for the threshold {threshold}: their certificates are renewed or revoked"
        raise ConfigurationError(message)
    return min(fitting, key=lambda each: (each[0] < today, abs(each[0] - today)))


def _due_days(mentor: Mentor, today: date) -> Iterator[tuple[date, Reminder]]:
    """Yield the reminders due today, and each past or coming one with the first day on which it is due."""
    for certificate in mentor.certificates:
        expiry = certificate.expires_on.toordinal()
        days = {today.toordinal(), certificate.issued_on.toordinal()}
        days.update(expiry - threshold for threshold in mentor.organisation.reminder_thresholds)
        for day in (date.fromordinal(day) for day in sorted(days) if 1 <= day <= date.max.toordinal()):
            threshold = rules.due_threshold(certificate, mentor, day)
            if threshold is not None:
                yield (
                    day,
                    Reminder(cert_id=certificate.id, threshold_days=threshold, expires_on=certificate.expires_on),
                )


def _was_sent(reminder: Reminder, log: _Log) -> bool:
    row = log.get((reminder.cert_id, reminder.threshold_days))
    return row is not None and row.was_sent(reminder.expires_on)


def _will_be_paused(mentor: Mentor, day: date) -> bool:
    """Return whether certjob's own pause will be open on that day: a run reviews before it sends."""
    reviewed = after(mentor, rules.decide(mentor, day))
    return any(pause.reason == OWN_PAUSE_REASON for pause in reviewed.open_pauses)


def _describe(reminder: Reminder, day: date, *, today: date, is_next: bool) -> str:
    if day == today:
        return f"the reminder that is due today, for the threshold {reminder.threshold_days}"
    which = "the next reminder" if is_next else f"the reminder for the threshold {reminder.threshold_days}"
    return f"{which}, due {day}" if day > today else f"{which}; its day was {day}"
