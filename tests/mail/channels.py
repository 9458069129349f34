"""Mail channels and queues."""

from datetime import UTC, date
from typing import Any

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.digests import DigestMail
from certjob.mail.messages.templates import OUR_TEMPLATES
from certjob.mail.reminder_mail import ReminderMail
from tests.support.facts import TODAY
from tests.support.smtp_server import HOST


def smtp_channel(port: int, *, host: str = HOST, **options: Any) -> SmtpChannel:
    """Return a channel; options with the name of a class attribute set this attribute."""
    attributes = {name: options.pop(name) for name in [*options] if hasattr(SmtpChannel, name)}
    channel = SmtpChannel(host, port=port, sender=parse_sender("Hørsel, HLF <post@hlf.example>"), **options)
    for name, value in attributes.items():
        setattr(channel, name, value)
    return channel


def reminder_mail(connection: Connection, *, today: date = TODAY) -> ReminderMail:
    return ReminderMail(connection, today=today, templates=OUR_TEMPLATES)


def digest_mail(connection: Connection) -> DigestMail:
    return DigestMail(connection, today=TODAY, zone=UTC, templates=OUR_TEMPLATES)
