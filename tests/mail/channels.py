"""Mail channels, queues and stages."""

from datetime import UTC, date
from typing import Any

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.digests import DigestMail
from certjob.mail.message import Channel
from certjob.mail.messages.templates import OUR_TEMPLATES
from certjob.mail.queue import MailQueue
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.stage import MailCounts, MailStage
from certjob.outbox.calls import Calls
from certjob.outbox.claims import StageStop
from certjob.stopping import StopFlag
from tests.support.facts import TODAY
from tests.support.smtp_server import HOST


def run_stage(
    queue: MailQueue[Any],
    channel: Channel,
    *,
    stop: StopFlag | None = None,
    counts: MailCounts | None = None,
    seconds: float = 60,
) -> StageStop | None:
    """Run the mail stage over one queue, as ``deliver`` does."""
    stop = stop or StopFlag()
    with Calls(stop) as calls:
        stage = MailStage(queue, channel=channel, calls=calls, stop=stop, counts=counts or MailCounts())
        try:
            return stage.run(deadline_seconds=seconds)
        finally:
            calls.make(channel.close())


def smtp_channel(port: int, *, host: str = HOST, **options: Any) -> SmtpChannel:
    """Return a channel; options with the name of a class attribute set this attribute."""
    attributes = {name: options.pop(name) for name in [*options] if hasattr(SmtpChannel, name)}
    channel = SmtpChannel(host, port=port, sender=parse_sender("Hørsel, HLF <post@hlf.example>"), **options)
    for name, value in attributes.items():
        setattr(channel, name, value)
    return channel


def reminder_mail(connection: Connection, *, today: date = TODAY, **options: Any) -> ReminderMail:
    return ReminderMail(connection, today=today, **{"templates": OUR_TEMPLATES} | options)


def digest_mail(connection: Connection, *, today: date = TODAY) -> DigestMail:
    return DigestMail(connection, today=today, zone=UTC, templates=OUR_TEMPLATES)
