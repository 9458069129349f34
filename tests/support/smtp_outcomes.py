"""Whose fault a mail server's answer is, what a reminder's row holds then, and a stage that meets the server."""

import email
import email.policy
from contextlib import AbstractContextManager
from datetime import timedelta
from email.message import EmailMessage
from typing import Any

import pytest
from aiosmtplib import SMTPResponse, SMTPResponseException
from aiosmtplib.protocol import SMTPProtocol

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.mail.channels.smtp import SmtpChannel
from certjob.outbox.claims import StageStop
from tests.support.channels import BlockingChannel, BlockingStage, blocking, reminder_mail
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


REPEAT_LINE = "Har du allerede fått denne påminnelsen?"


def show_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let STARTTLS change nothing but what both sides believe, so that a scripted server can go on talking."""

    async def start_tls(self: SMTPProtocol, *_: object, **__: object) -> SMTPResponse:
        response = await self.execute_command(b"STARTTLS")
        if response.code != 220:
            raise SMTPResponseException(response.code, response.message)
        self._buffer.clear()
        return response

    monkeypatch.setattr(SMTPProtocol, "start_tls", start_tls)


def smtp_channel(port: int, **options: Any) -> SmtpChannel:
    return SmtpChannel(HOST, port=port, sender=parse_sender("post@hlf.example"), **options)


def channel_to(port: int, **options: Any) -> AbstractContextManager[BlockingChannel]:
    """A channel that a test calls itself."""
    return blocking(smtp_channel(port, **options))


def run_stage(connection: Connection, channel: SmtpChannel) -> StageStop | None:
    return BlockingStage(connection, reminder_mail(connection), channel).run()


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
