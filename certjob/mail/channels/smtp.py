"""Send messages by SMTP, one recipient each, and tell a failure of one message from a failure of the server."""

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

from aiosmtplib import SMTP, SMTPAuthenticationError, SMTPException, SMTPResponseException
from aiosmtplib.auth import auth_login_encode, auth_plain_encode
from aiosmtplib.protocol import SMTPProtocol
from pydantic import SecretStr

from certjob.domain.addresses import MailAddress
from certjob.errors import (
    Cause,
    ChannelDownError,
    MailRejectedError,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRejectedError,
)
from certjob.mail.channels.server_text import Subject, readable, subject_of
from certjob.mail.message import OutgoingMessage, compose
from certjob.settings import LOOPBACK_HOSTS

QUIT_SECONDS = 5.0

CODES_FOR_ALL = frozenset({421, 530, 534, 535, 538})
"""The server shuts down (RFC 5321) or requires a different login (RFC 4954), so no message can be sent."""

BROKEN = (SMTPException, OSError, ValueError)
"""Errors after which a connection is not used again. TimeoutError is an OSError. An invalid host name or command is a
ValueError."""


@dataclass(repr=False, eq=False)
class SmtpChannel:
    """A mail server.

    Until the server has answered 354 to DATA, it cannot have the message, so an earlier failure is certain. After that
    only the answer to the whole message is certain. RFC 5321, 4.5.3.2.6, allows servers 10 minutes for it, so a shorter
    timeout would send duplicates. After a failure the connection is cut without QUIT, because a late answer would be
    taken for the answer to the next message.
    """

    connect_seconds = 60.0
    """For connection, TLS and login."""
    envelope_seconds = 60.0
    """For sender and recipient, up to DATA."""
    answer_seconds = 600.0
    """For the message."""
    messages_per_connection = 100

    host: str
    port: int
    sender: MailAddress
    bounce_address: MailAddress | None = None
    """The envelope sender, if it is not ``sender``."""
    implicit_tls: bool = False
    user: str | None = None
    password: SecretStr | None = None
    tls: ssl.SSLContext | None = None
    """Created for the first connection that needs it."""
    _client: SMTP | None = field(default=None, init=False)
    _messages_sent: int = field(default=0, init=False)

    @property
    def worst_case_seconds(self) -> float:
        """The maximum duration of ``send`` (default 785): the envelope may be sent twice."""
        return QUIT_SECONDS + self.connect_seconds + 2 * self.envelope_seconds + self.answer_seconds

    async def send(self, message: OutgoingMessage) -> None:
        """Send one message in one attempt; see ``Channel.send``."""
        recipient, data = compose(message, sender=self.sender)
        if self._messages_sent >= self.messages_per_connection:
            await self.close()
        try:
            wire = await self._envelope(recipient)
            await self._hand_over(wire, data, recipient=recipient)
        except BaseException:  # a cancellation, too
            self._drop()
            raise
        self._messages_sent += 1

    async def probe(self) -> str:
        """Connect, log in and send NOOP. Raises ChannelDownError."""
        client = await self._open()
        try:
            async with _phase(self.envelope_seconds, ChannelDownError, "the connection to the mail server broke"):
                code, text = await client.execute_command(b"NOOP")
        finally:
            await self.close()
        if not 200 <= code < 300:
            message = f"the mail server takes no commands ({code} {readable(text)})"
            raise ChannelDownError(message)
        return "the server took the connection and the login, where there is one; nothing was sent"

    async def close(self) -> None:
        """Send QUIT and wait up to 5 seconds for the answer; see ``Channel.close``."""
        client, transport = self._client, self._client.transport if self._client is not None else None
        try:
            if client is not None:
                with contextlib.suppress(*BROKEN):
                    async with asyncio.timeout(QUIT_SECONDS):
                        await client.quit()
        finally:
            self._drop()
            _abort(transport)  # otherwise TLS waits for the other side

    def _drop(self) -> None:
        """Cut the connection without sending the buffered bytes."""
        if self._client is not None:
            _abort(self._client.transport)
            self._client.close()
        self._client = None
        self._messages_sent = 0

    async def _envelope(self, recipient: MailAddress) -> SMTPProtocol:
        """Announce a message, once more over a new connection if the kept one fails; see ``_announce``.

        The server may have hung up since the last message, or its late answer (421) was read as that to a command.
        """
        if self._client is not None:
            try:
                return await self._announce(self._client, recipient=recipient)
            except ChannelDownError:
                self._drop()
        return await self._announce(await self._open(), recipient=recipient)

    async def _open(self) -> SMTP:
        """Return a new connection with TLS and login."""
        failed, next_step = "the mail server cannot be used", "check CERTJOB_NOTIFY_URL and the server"
        try:
            async with _phase(self.connect_seconds, ChannelDownError, failed, next_step=next_step):
                return await self._connect()
        except BaseException:
            self._drop()
            raise

    async def _connect(self) -> SMTP:
        # smtp:// requires STARTTLS, except on loopback without a login.
        secured = self.implicit_tls or self.user is not None or self.host not in LOOPBACK_HOSTS
        if secured and self.tls is None:
            self.tls = ssl.create_default_context()
        self._client = client = SMTP(
            hostname=self.host,
            port=self.port,
            local_hostname=_client_name(),
            timeout=None,  # each phase has its own
            use_tls=self.implicit_tls,
            start_tls=False,
            tls_context=self.tls,
        )
        await client.connect()
        await client.ehlo()
        if secured and not self.implicit_tls:
            if not client.supports_extension("starttls"):
                message = "the mail server offers no STARTTLS, without which certjob sends neither mail nor password"
                next_step = "use smtps:// or a server with STARTTLS in CERTJOB_NOTIFY_URL"
                raise ChannelDownError(message, next_step=next_step)
            await client.starttls()
            await client.ehlo()  # answers before TLS do not count (RFC 3207)
        if self.user is not None:
            await self._log_in(client, self.user)
        return client

    async def _log_in(self, client: SMTP, user: str) -> None:
        """Log in with PLAIN or LOGIN, once. The ``login`` of aiosmtplib would try every mechanism, CRAM-MD5 first."""
        password = self.password.get_secret_value() if self.password else ""
        try:
            if "plain" in client.server_auth_methods:
                await client.auth_plain(user, password)
            elif "login" in client.server_auth_methods:
                await client.auth_login(user, password)
            else:
                message = "the mail server offers no login that certjob knows (PLAIN, LOGIN)"
                raise ChannelDownError(message, next_step="is CERTJOB_NOTIFY_URL right?")
        except SMTPAuthenticationError as error:
            coded = [auth_plain_encode(user, password), *auth_login_encode(user, password)]
            secrets = [*(code.decode("ascii") for code in coded), user, password]
            message, next_step = "the mail server cannot take the login now", None
            if 500 <= error.code < 600:
                message = "the mail server rejected the login"
                next_step = "correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD"
            message = f"{message} ({error.code} {readable(error.message, secrets=secrets)})"
            raise ChannelDownError(message, next_step=next_step) from None  # the answer may contain the password

    async def _announce(self, client: SMTP, *, recipient: MailAddress) -> SMTPProtocol:
        """Send the envelope up to the 354 to DATA, and return the protocol that accepts the message."""
        broke = "the connection to the mail server broke before a message was handed over"
        wire = client.protocol
        if wire is None:  # the server has hung up since the last message
            raise ChannelDownError(broke)
        sender, options = f"FROM:<{(self.bounce_address or self.sender).specification}>".encode(), []
        if recipient.international:
            if not client.supports_extension("smtputf8"):
                message = "the mail server does not accept non-ASCII addresses"
                raise RecipientRejectedError(message, next_step="correct the address", code=Cause.WRONG_ADDRESS)
            options = [b"SMTPUTF8"]
        steps = (
            # With SMTPUTF8, a rejection may be due to the recipient's letters. The next message will show it.
            ("recipient" if options else "sender", [b"MAIL", sender, *options], range(200, 300)),
            ("recipient", [b"RCPT", f"TO:<{recipient.specification}>".encode()], range(200, 300)),
            ("message", [b"DATA"], range(354, 355)),
        )
        async with _phase(self.envelope_seconds, ChannelDownError, broke):
            for what, command, success in steps:
                code, text = await wire.execute_command(*command)
                if code not in success:
                    raise _rejection(code, text, recipient=recipient, what=what)
        return wire

    async def _hand_over(self, wire: SMTPProtocol, data: bytes, *, recipient: MailAddress) -> None:
        """Send the message and wait for the answer."""
        silent = "no answer came after the message was handed over, so it may have arrived"
        async with _phase(self.answer_seconds, OutcomeUnknownError, silent):
            wire.write(_as_sent(data))
            code, text = await wire.read_response()
        if 400 <= code < 600:
            raise _rejection(code, text, recipient=recipient, what="message")
        if not 200 <= code < 300:
            message = "the answer after the message was handed over is not SMTP, so it may have arrived"
            raise OutcomeUnknownError(message)


@asynccontextmanager
async def _phase(
    seconds: float, failure: type[NotifyError], text: str, *, next_step: str | None = None
) -> AsyncIterator[None]:
    """Limit the duration, and raise ``failure`` with the reason for any error of the connection."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except BROKEN as broken:
        message = f"{text}: {_reason(broken)}"
        raise failure(message, next_step=next_step) from _cause(broken)


def _abort(transport: asyncio.BaseTransport | None) -> None:
    if transport is not None:
        cast("asyncio.WriteTransport", transport).abort()


def _client_name() -> str:
    """Return this machine's name if it is fully qualified, otherwise an address literal (RFC 5321, 4.1.4).

    A lookup could take any time.
    """
    name = socket.gethostname()
    is_full = "." in name and name.replace(".", "").replace("-", "").isalnum() and name.isascii()
    return name if is_full else "[127.0.0.1]"


def _as_sent(data: bytes) -> bytes:
    """Return the message with CRLF after each line, doubled dots at the start of lines, and a final dot."""
    lines = re.sub(rb"\r\n|\r|\n", b"\r\n", data).removesuffix(b"\r\n") + b"\r\n"
    return re.sub(rb"(?m)^\.", b"..", lines) + b".\r\n"


def _rejection(code: int, text: str, *, recipient: MailAddress, what: str) -> NotifyError:
    """Return the error for an answer that is not a success."""
    said = f"{code} {readable(text, recipient=recipient)}"
    if code in CODES_FOR_ALL:
        return ChannelDownError(f"the mail server takes no messages ({said})")
    if what == "sender":
        next_step = "check CERTJOB_MAIL_FROM (or CERTJOB_BOUNCE_ADDRESS)"
        return ChannelDownError(f"the mail server rejected the sender ({said})", next_step=next_step)
    about = subject_of(f"{code} {text}") if 500 <= code < 600 else None
    if 400 <= code < 500 or about is Subject.FULL_MAILBOX:
        return RecipientDeferredError(f"the mail server deferred the {what} ({said})")
    if about is Subject.ADDRESS:
        return RecipientRejectedError(f"the mail server rejected the {what} ({said})", code=Cause.WRONG_ADDRESS)
    if about is not None:
        rejected = f"the mail server rejected the {what} ({said})"
        return MailRejectedError(rejected, may_be_address=about is Subject.UNCLEAR)
    return ChannelDownError(f"the server's answer about the {what} is not SMTP", next_step="check CERTJOB_NOTIFY_URL")


def _cause(error: BaseException) -> BaseException:
    """Return the error of the system or of TLS inside the library's error."""
    while isinstance(error, SMTPException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: Exception) -> str:
    """Return what happened to a connection, on one line and without anything that was sent."""
    match _cause(error):
        case ssl.SSLCertVerificationError() as cause:
            return f"its certificate is not trusted ({cause.verify_message})"
        case ssl.SSLError(reason=str(reason)):
            return readable(reason)
        case TimeoutError():
            return "it did not answer in time"
        case SMTPResponseException(code=-1):
            return "its answer is not SMTP"
        case SMTPResponseException() as cause:
            return f"it answered {cause.code} {readable(cause.message)}"
        case OSError(errno=int(number)) if number in errno.errorcode:
            return os.strerror(number)
        case OSError(strerror=str(said)):
            return readable(said)
        case cause:
            return readable(str(cause))
