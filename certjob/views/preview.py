"""One mentor's reminder before it is sent: which one it is, how it will read, and a copy of it for somebody else."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from uuid import UUID, uuid4

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Certificate, Mentor, PauseChange, Reminder
from certjob.errors import ConfigurationError, UnknownMentorError
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.messages import Recipient, Templates
from certjob.mail.reminder_mail import read_recipient, reminder_key, reminder_message
from certjob.outbox.loop import run_alone

PREFIXES = {"nb": "[forhåndsvisning]", "nn": "[førehandsvising]", "en": "[preview]"}
"""Before the subject of a copy, so that nobody takes it for a reminder of their own."""

NOBODY = UUID(int=0)
"""The mentor of a copy: a webhook must not find the real one by it, and no mentor can have this id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewRequest:
    """What somebody wants to see."""

    today: date
    threshold_days: int | None = None
    """None: the reminder that is due, or the next one."""
    locale: str | None = None
    """None: the mentor's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A reminder as it will go out."""

    message: OutgoingMessage
    queued: bool
    """Whether it has its place in the log, and with it its Message-ID, already."""
    sends_on: date
    """The day whose count of days it has."""
    explanation: str
    """Which reminder it is, and what keeps it from being sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LogRow:
    """One row of ``read_reminder_log``."""

    id: int
    cert_id: UUID
    threshold_days: int
    sent: bool
    sent_at: datetime | None
    failed: str | None
    cycle: int
    repeat: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A reminder and the day on which it is, or would be, sent."""

    reminder: Reminder
    sends_on: date


_Log = Mapping[tuple[UUID, int], _LogRow]


def preview_reminder(
    connection: Connection, mentor_id: UUID, *, request: PreviewRequest, templates: Templates
) -> Preview:
    """Return a mentor's reminder as it will go out; writes nothing, and works on a read-only connection.

    Raises ConfigurationError when there is no such reminder, TemplateError when it cannot be written.
    """
    with database.read_only_snapshot(connection):
        recipient = read_recipient(connection, mentor_id)
        rows = database.fetch(connection, "read_reminder_log", {"mentor_id": mentor_id}, into=_LogRow)
    if recipient is None:
        text = f"mentor {mentor_id} does not exist any more"
        raise UnknownMentorError(text)
    log = {(row.cert_id, row.threshold_days): row for row in rows}
    choice = _choose(recipient.mentor, log, request=request)
    row = log.get((choice.reminder.cert_id, choice.reminder.threshold_days))
    key = reminder_key(row.id, cycle=row.cycle) if row else f"preview-{uuid4().hex}"
    message = reminder_message(
        choice.reminder,
        replace(recipient, paused=_paused(recipient, choice.sends_on), locale=request.locale or recipient.locale),
        key=key,
        repeat=row is not None and row.repeat and not row.sent,
        today=choice.sends_on,
        templates=templates,
    )
    if templates.broken:
        raise templates.broken[0]
    return Preview(
        message=message,
        queued=row is not None,
        sends_on=choice.sends_on,
        explanation=_explain(choice, row, recipient, request=request),
    )


def send_copy(preview: Preview, channel: Channel, *, to: str) -> None:
    """Send a copy that cannot be mistaken for the reminder, to somebody else, and close the channel.

    It has its own Message-ID and leaves no trace in the database. Raises NotifyError.
    """
    key = f"preview-{uuid4().hex}"
    message = preview.message
    copy = replace(
        message,
        to=to,
        to_name=None,
        subject=f"{PREFIXES.get(message.locale, PREFIXES['nb'])} {message.subject}",
        idempotency_key=key,
        kind="preview",
        mentor_id=NOBODY,
    )

    async def send() -> None:
        try:
            await channel.send(copy)
        finally:
            await channel.close()

    run_alone(send())


def _choose(mentor: Mentor, log: _Log, *, request: PreviewRequest) -> _Choice:
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
    if request.threshold_days is not None:
        return _with_threshold(mentor, request.threshold_days, today=request.today, who=who)
    choices = [choice for c in mentor.certificates for choice in _due_or_next(c, mentor, log, request.today)]
    if not choices:
        message = f"{who} has no upcoming reminder"
        raise ConfigurationError(message, next_step="use --threshold to preview a past one")
    return min(choices, key=lambda choice: (choice.sends_on, choice.reminder.expires_on, choice.reminder))


def _due_or_next(certificate: Certificate, mentor: Mentor, log: _Log, today: date) -> Iterator[_Choice]:
    """Yield the reminder about this certificate that is due, or else the first that will be."""
    for day in [today, *_coming_days(certificate, mentor, today)]:
        threshold = rules.due_threshold(certificate, mentor, day)
        row = log.get((certificate.id, threshold)) if threshold is not None else None
        if threshold is not None and not (row and row.sent):
            yield _choice(certificate, threshold, day)
            return


def _with_threshold(mentor: Mentor, threshold: int, *, today: date, who: str) -> _Choice:
    """Return the reminder of one threshold: due today, or else to come, or else past, the nearest day first."""
    organisation = mentor.organisation
    if threshold not in organisation.reminder_thresholds:
        known = ",".join(map(str, organisation.reminder_thresholds))
        message = f"--threshold {threshold} is none of {organisation.slug}'s, which are {known}"
        raise ConfigurationError(message)
    choices: list[_Choice] = []
    for certificate in mentor.certificates:
        own_day = max(certificate.expires_on.toordinal() - threshold, certificate.issued_on.toordinal())
        for day in (today, *_dates([own_day])):
            if rules.due_threshold(certificate, mentor, day) == threshold:
                choices.append(_choice(certificate, threshold, day))
                break
    if not choices:
        message = f"{who} gets no reminder for the threshold {threshold}: their certificates are renewed or revoked"
        raise ConfigurationError(message)
    return min(choices, key=lambda choice: (choice.sends_on < today, abs(choice.sends_on - today)))


def _coming_days(certificate: Certificate, mentor: Mentor, today: date) -> list[date]:
    """The days after today on which a reminder about this certificate can become due."""
    expiry = certificate.expires_on.toordinal()
    days = {certificate.issued_on.toordinal(), *(expiry - t for t in mentor.organisation.reminder_thresholds)}
    return [day for day in _dates(sorted(days)) if day > today]


def _dates(ordinals: Iterable[int]) -> list[date]:
    return [date.fromordinal(day) for day in ordinals if 1 <= day <= date.max.toordinal()]


def _choice(certificate: Certificate, threshold: int, day: date) -> _Choice:
    reminder = Reminder(cert_id=certificate.id, threshold_days=threshold, expires_on=certificate.expires_on)
    return _Choice(reminder=reminder, sends_on=day)


def _paused(recipient: Recipient, day: date) -> bool:
    """Whether certjob's own pause will be open that day: the night reviews before it sends.

    The recipient comes without open pauses, so the rules want one opened exactly while one should be open.
    """
    return rules.decide(recipient.mentor, day).pause is PauseChange.OPEN


def _explain(choice: _Choice, row: _LogRow | None, recipient: Recipient, *, request: PreviewRequest) -> str:
    threshold, day = choice.reminder.threshold_days, choice.sends_on
    which = "the next reminder" if request.threshold_days is None else f"the reminder for the threshold {threshold}"
    if day == request.today:
        text = f"the reminder that is due today, for the threshold {threshold}"
    elif day > request.today:
        text = f"{which}, due {day}"
    else:
        text = f"{which}; its day was {day}"
    if row is not None and row.sent:
        text += "; it has been sent" + (f" ({row.sent_at:%Y-%m-%d})" if row.sent_at else "")
    elif row is not None and row.failed is not None:
        text += f"; it could not be delivered: {row.failed}"
    if not recipient.email:
        text += "; it cannot be sent: the mentor has no e-mail address"
    return text
