"""Whose fault a mail server's answer is, what a reminder's row holds then, and a stage that meets the server."""

import email
import email.policy
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from uuid import uuid4

from certjob.database import Connection
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.message import parse_sender
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.reminders import CertificationReminderService, QueuedReminder
from certjob.mail.stage import MailStage
from certjob.outbox.claims import StageStop
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, review
from tests.support.smtp_server import HOST

EVERYBODY, LATER, NEVER, UNKNOWN = "everybody", "later", "never", "unknown"
"""Whose fault it is: the server's for all, the recipient's for now, the recipient's for good, or nobody can know."""


ROWS = {
    EVERYBODY: ("pending", 0, False, True),
    LATER: ("pending", 1, False, False),
    NEVER: ("failed", 1, False, False),
    UNKNOWN: ("pending", 1, True, False),
}
"""What a reminder's row holds then: status, attempts, maybe_sent, and whether it is due at once."""


REPEAT_LINE = "Du kan få denne påminnelsen mer enn én gang"


@contextmanager
def channel_to(port: int, **options: Any) -> Iterator[SmtpChannel]:
    channel = SmtpChannel(HOST, port=port, sender=parse_sender("post@hlf.example"), **options)
    try:
        yield channel
    finally:
        channel.close()


def run_stage(connection: Connection, channel: SmtpChannel) -> StageStop | None:
    service = CertificationReminderService(connection, run_id=uuid4())
    stage: MailStage[QueuedReminder] = MailStage(
        ReminderMail(service, today=TODAY, domain="hlf.example"), channel=channel, stop=StopFlag()
    )
    return stage.run(deadline_seconds=60)


def queue_two(facts: Facts) -> None:
    organisation = facts.organisation(portal=None)
    for _ in range(2):
        facts.certified_mentor(organisation, TODAY + timedelta(days=5))
    review(facts.connection)


def make_good(facts: Facts) -> None:
    """Time passes, and addresses that were refused are corrected."""
    facts.connection.execute("UPDATE mentors SET email = 'new-' || email")
    make_due(facts, "cert_notification_log")


def message_of(body: bytes) -> EmailMessage:
    message = email.message_from_bytes(body.replace(b"\r\n..", b"\r\n."), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def text_of(message: EmailMessage) -> str:
    part = message.get_body(("plain",))
    assert part is not None
    return str(part.get_content())
