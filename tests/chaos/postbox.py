"""The mail server's side: takes each reminder, reads what it says of itself, and may be struck before or after."""

import asyncio
import email
import email.policy
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

from tests.chaos.faults import MailWord, Spot, When
from tests.chaos.strikes import Strike
from tests.support.smtp_server import Mailbox

REPEAT_LINE = "You may already have received this reminder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One reminder that the server took."""

    to: str
    message_id: str
    says_repeat: bool

    def __str__(self) -> str:
        return f"{self.to} {self.message_id}{' (repeat)' if self.says_repeat else ''}"


class Postbox(Mailbox):
    """A mailbox with a script and a strike."""

    def __init__(self) -> None:
        super().__init__()
        self._script: list[MailWord] = []
        self._strike: Strike | None = None
        self._word = MailWord.OK

    def begin(self, script: Sequence[MailWord], strike: Strike | None) -> None:
        """Play this script to what comes now, then be healthy."""
        self._script = list(script)
        self._strike = strike

    @property
    def taken(self) -> list[Taken]:
        """Every message, in order."""
        return [_read(envelope) for envelope in list(self.envelopes)]

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's
        self, server: Any, session: object, envelope: Any, address: str, options: list[str]
    ) -> str:
        self._word = self._script.pop(0) if self._script else MailWord.OK
        if self._word is MailWord.CUT_AT_MAIL:
            server.transport.abort()
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 fine"

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's
        self, server: Any, session: object, envelope: Any, address: str, options: list[str]
    ) -> str:
        match self._word:
            case MailWord.CUT_AT_RCPT:
                server.transport.abort()
            case MailWord.CUT_AT_DATA:
                _cut_after(server, b"354")
            case MailWord.GREYLIST:
                return "450 not yet"
            case MailWord.CLOSING:
                return "421 closing"
        envelope.rcpt_tos.append(address)
        return "250 fine\r\n250 and again" if self._word is MailWord.SURPLUS else "250 fine"

    async def handle_DATA(self, server: Any, session: object, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
        word = self._word
        strike = self._strike
        if strike is not None and not strike.chooses(Spot.MAIL):
            strike = None
        about = _read(envelope).message_id
        if strike is not None:
            await asyncio.to_thread(strike.at, When.BEFORE, about=about)
        if word is MailWord.DEFER:
            return "451 not now"
        if word is MailWord.LOST:
            server.transport.abort()
            return "250 never heard"
        answer = await super().handle_DATA(server, session, envelope)
        if strike is not None:
            await asyncio.to_thread(strike.at, When.AFTER, about=about)
        if word is MailWord.CUT:
            server.transport.abort()
        return answer


def _cut_after(server: Any, beginning: bytes) -> None:
    """Cut the connection as soon as the server has given an answer that begins so."""
    push = server.push

    async def push_and_cut(answer: Any) -> None:
        await push(answer)
        if (answer.encode() if isinstance(answer, str) else answer).startswith(beginning):
            server.transport.abort()

    server.push = push_and_cut


def _read(envelope: Any) -> Taken:
    message = email.message_from_bytes(envelope.content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    body = message.get_body(("plain",))
    text = body.get_content() if body is not None else ""
    return Taken(
        to=envelope.rcpt_tos[0], message_id=str(message["Message-ID"]).strip(), says_repeat=REPEAT_LINE in text
    )
