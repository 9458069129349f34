"""A reminder as the message that a channel takes: the facts, today's count of days, the texts."""

from datetime import date

from certjob.channel import OutgoingMessage
from certjob.mail import parse_sender
from certjob.messages import OUR_TEMPLATES, ReminderContent, Templates, render_reminder
from certjob.models import Reminder
from certjob.reminders import Recipient


def reminder_message(
    due: Reminder,
    recipient: Recipient,
    *,
    key: str,
    repeat: bool,
    today: date,
    domain: str,
    templates: Templates = OUR_TEMPLATES,
) -> OutgoingMessage:
    """Write the reminder for this recipient, with the days left on ``today``.

    ``key`` is the same on every repeat. Raises TemplateError when a template of the programme's breaks.
    """
    mentor = recipient.mentor
    certificate = recipient.certificate(due.cert_id)
    kind = certificate.kind if certificate else ""
    rendered = render_reminder(
        ReminderContent(
            full_name=recipient.full_name,
            member_no=mentor.member_no,
            kind=kind,
            expires_on=due.expires_on,
            days_left=(due.expires_on - today).days,
            threshold_days=due.threshold_days,
            pauses=kind not in mentor.organisation.optional_kinds,
            paused=recipient.paused,
            organisation_name=recipient.organisation_name,
            contact_email=recipient.contact_email,
            contact_phone=recipient.contact_phone,
            renewal_url=recipient.renewal_url,
            locale=recipient.locale,
            repeat=repeat,
            organisation_slug=mentor.organisation.slug,
        ),
        templates=templates,
    )
    return OutgoingMessage(
        to=recipient.email or "",
        subject=rendered.subject,
        text=rendered.text,
        html=rendered.html,
        message_id=message_id(key, domain=domain),
        idempotency_key=key,
        locale=recipient.locale,
        kind="reminder",
        mentor_id=mentor.id,
        threshold_days=due.threshold_days,
        expires_on=due.expires_on,
        repeat=repeat,
        reply_to=recipient.contact_email,
    )


def reminder_key(log_id: int, *, cycle: int) -> str:
    """Return what a reminder is known by outside: the same on every repeat, another one after an extension."""
    return f"reminder-{log_id}-{cycle}"


def message_id(key: str, *, domain: str) -> str:
    """Return the Message-ID of the message with this key."""
    return f"<certjob-{key}@{domain}>"


def domain_of(mail_from: str | None) -> str:
    """Return the right side of every Message-ID; a channel that needs a sender has checked it already."""
    try:
        return parse_sender(mail_from or "").domain
    except ValueError:
        return "certjob.invalid"
