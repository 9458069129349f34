"""One mentor's reminder, or one coordinator's digest, as certjob will send it."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import OWN_PAUSE_REASON, Mentor, Reminder
from certjob.domain.projection import after
from certjob.errors import ConfigurationError, UnknownMentorError
from certjob.mail.digest_contents import read_digest, read_recipients
from certjob.mail.digests import draft_digest
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.templates import Templates
from certjob.mail.reminder_mail import draft_reminder, read_recipient
from certjob.reports.logged_reminders import LoggedReminder, read_logged_reminders

_Log = Mapping[tuple[UUID, int], LoggedReminder]
"""The logged reminders by certificate and threshold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A reminder or digest as certjob will send it."""

    message: OutgoingMessage
    sends_on: date
    """The message counts its days from this date."""
    explanation: str
    """Which message it is, and what prevents its delivery."""


def preview_reminder(
    connection: Connection,
    mentor_id: UUID,
    *,
    today: date,
    threshold_days: int | None,
    locale: str | None,
    templates: Templates,
) -> Preview:
    """Return the reminder for this threshold, or the due or next one, in this language, or in the mentor's.

    Raises UnknownMentorError, TemplateError, and ConfigurationError without such a reminder.
    """
    with database.read_only_snapshot(connection):
        recipient = read_recipient(connection, mentor_id)
        rows = read_logged_reminders(connection, mentor_id)
    if recipient is None:
        text = f"mentor {mentor_id} has been deleted"
        raise UnknownMentorError(text)
    log = {(row.certificate_id, row.threshold_days): row for row in rows}
    mentor = recipient.mentor
    day, reminder = _choose(mentor, log, today=today, threshold=threshold_days)
    row = log.get((reminder.cert_id, reminder.threshold_days))
    current = row if row is not None and row.reminder == reminder else None
    reviewed = after(mentor, rules.decide(mentor, day))  # a run reviews before it sends
    paused = any(pause.reason == OWN_PAUSE_REASON for pause in reviewed.open_pauses)
    message = draft_reminder(
        reminder,
        replace(recipient, paused=paused, locale=locale or recipient.locale),
        key="preview",
        repeat=current is not None and current.status != "sent" and current.maybe_sent,
        today=day,
    ).write(templates)
    if templates.broken is not None:
        raise templates.broken
    threshold = f"for the threshold {reminder.threshold_days}"
    which = "the next reminder" if threshold_days is None else f"the reminder {threshold}"
    notes = [f"{which}, due {day}" if day > today else f"{which}; its day was {day}"]
    if day == today:
        notes = [f"the reminder that is due today, {threshold}"]
    if _was_sent(log, reminder):
        notes.append("it has been sent")
    elif current is not None and current.status == "failed":
        notes.append(f"it could not be delivered: {current.error}")
    if not recipient.email:
        notes.append("it cannot be sent: the mentor has no e-mail address")
    return Preview(message=message, sends_on=day, explanation="; ".join(notes))


def preview_digest(
    connection: Connection,
    email: str,
    *,
    organisation: str | None,
    today: date,
    templates: Templates,
    **setting: Any,
) -> Preview:
    """Return the digest that this coordinator would get now. ``setting``: see ``draft_digest``.

    Raises TemplateError, and ConfigurationError if no coordinator or several have this address.
    """
    with database.read_only_snapshot(connection):
        found = read_recipients(connection, email=email, slug=organisation, today=today)
        digest = read_digest(connection, found[0], today=today) if len(found) == 1 else None
    if digest is None:
        slugs = ", ".join(coordinator.organisation_slug for coordinator in found)
        text = f"several coordinators have this address: {slugs}" if found else "no coordinator has this address"
        step = "name one with --organisation" if found else "see `certjob organisation show SLUG`"
        raise ConfigurationError(text, next_step=step)
    message = draft_digest(digest, key="preview", repeat=False, **setting).write(templates)
    if templates.broken is not None:
        raise templates.broken
    last = digest.coordinator.last_digest_on
    explanation = "the digest as it would be sent now"
    if not digest.has_news:
        explanation = f"nothing is new since the digest of {last}, so certjob would send none; this is what is open"
    elif last == today:
        explanation = "the digest as it would be sent tomorrow; today's has been sent"
    return Preview(message=message, sends_on=today, explanation=explanation)


def _was_sent(log: _Log, reminder: Reminder) -> bool:
    row = log.get((reminder.cert_id, reminder.threshold_days))
    return row is not None and row.was_sent(reminder.expires_on)


def _choose(mentor: Mentor, log: _Log, *, today: date, threshold: int | None) -> tuple[date, Reminder]:
    """Return the requested reminder and its day. Raises ConfigurationError if there is none."""
    slug, thresholds = mentor.organisation.slug, mentor.organisation.reminder_thresholds
    reminders = list(_due_days(mentor, today))
    if threshold is None:
        coming = [each for each in reminders if each[0] >= today and not _was_sent(log, each[1])]
        if coming:
            return min(coming, key=lambda each: (each[0], each[1].expires_on, each[1]))
    else:
        fitting = [each for each in reminders if each[1].threshold_days == threshold]
        if fitting:
            return min(fitting, key=lambda each: (each[0] < today, abs(each[0] - today)))
    which = "upcoming reminder" if threshold is None else f"reminder for the threshold {threshold}"
    message = f"{mentor.member_no} of {slug} has no {which}"
    step = f"see `certjob explain {shlex.quote(mentor.member_no)} --organisation {slug}`"
    others = f", or use --threshold with {', '.join(map(str, thresholds))}" if thresholds else ""
    raise ConfigurationError(message, next_step=f"{step}{others}")


def _due_days(mentor: Mentor, today: date) -> Iterator[tuple[date, Reminder]]:
    """Yield the reminders that are due today, and each other one with its first day."""
    for certificate in mentor.certificates:
        expiry = certificate.expires_on.toordinal()
        days = {today.toordinal(), certificate.issued_on.toordinal()}
        days.update(expiry - threshold for threshold in mentor.organisation.reminder_thresholds)
        for day in (date.fromordinal(day) for day in sorted(days) if 1 <= day <= date.max.toordinal()):
            threshold = rules.due_threshold(certificate, mentor, day)
            if threshold is not None:
                reminder = Reminder(cert_id=certificate.id, threshold_days=threshold, expires_on=certificate.expires_on)
                yield day, reminder
