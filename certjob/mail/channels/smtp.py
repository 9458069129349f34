"""Messages by SMTP: one recipient each, over a kept connection, with every failure told apart by whose fault it is."""

import asyncio
import contextlib
import errno
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from aiosmtplib import SMTP, SMTPAuthenticationError, SMTPException, SMTPResponseException
from aiosmtplib.auth import auth_login_encode, auth_plain_encode
from aiosmtplib.protocol import SMTPProtocol
from pydantic import SecretStr

from certjob.domain.addresses import MailAddress
from certjob.errors import (
    Cause,
    ChannelDownError,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
)
from certjob.mail.channels.server_text import readable
from certjob.mail.message import OutgoingMessage, compose
from certjob.settings import LOOPBACK_HOSTS

QUIT_SECONDS = 5.0

EVERYBODYS_CODES = frozenset({421, 530, 534, 535, 538})
"""The server is closing (RFC 5321), or wants a login or another one (RFC 4954): no recipient is to blame."""

BROKEN = (SMTPException, OSError, ValueError)
"""What a connection raises that is of no more use. A TimeoutError is an OSError; a host name that is not one and a
command that cannot be written are ValueErrors."""


class SmtpChannel:
    """A mail server.

    Until a server has answered 354 to DATA it cannot have a message: a failure before that is known to be one. After it
    only the answer to the whole message tells, and RFC 5321, 4.5.3.2.6, gives servers 10 minutes for it: who cuts it
    off early makes duplicates. A connection on which anything but success was said is dropped without another word: a
    late answer would be taken for that to the next message.
    """

    connect_seconds = 60.0
    """For connecting, TLS and login."""
    envelope_seconds = 60.0
    """For sender and recipient, up to DATA."""
    answer_seconds = 600.0
    """For the message."""
    messages_per_connection = 100
    tls: ssl.SSLContext | None = None
    """Made with the first connection that needs it."""

    def __init__(
        self,
        host: str,
        *,
        port: int,
        sender: MailAddress,
        bounce_address: MailAddress | None = None,
        implicit_tls: bool = False,
        user: str | None = None,
        password: SecretStr | None = None,
    ) -> None:
        """Prepare; nothing is opened before the first ``send``."""
        self._host = host
        self._port = port
        self._sender = sender
        self._bounce_address = bounce_address or sender
        self._implicit_tls = implicit_tls
        self._user = user
        self._password = password or SecretStr("")
        self._client: SMTP | None = None
        self._messages_sent = 0

    @property
    def worst_case_seconds(self) -> float:
        """The longest that one ``send`` can take; 725 unless told otherwise."""
        return QUIT_SECONDS + self.connect_seconds + self.envelope_seconds + self.answer_seconds

    async def send(self, message: OutgoingMessage) -> None:
        """Hand one message over, in one try; see ``Channel.send``."""
        recipient, data = compose(message, sender=self._sender)
        client = await self._ready()
        try:
            wire = await self._announce(client, recipient=recipient)
            await self._hand_over(wire, data, recipient=recipient)
        except BaseException:  # a cancellation, too
            self._drop()
            raise
        self._messages_sent += 1

    async def probe(self) -> str:
        """Connect, secure, log in and do nothing (NOOP): all that comes before a message. Raises ChannelDownError."""
        client = await self._ready()
        try:
            async with _phase(
                self.envelope_seconds,
                lambda why: ChannelDownError(f"the connection to the mail server broke: {why}"),
            ):
                code, text = await client.execute_command(b"NOOP")
        finally:
            await self.close()
        if not 200 <= code < 300:
            message = f"the mail server takes no commands ({code} {readable(text)})"
            raise ChannelDownError(message)
        return "the server took the connection and the login, where there is one; nothing was sent"

    async def close(self) -> None:
        """Send QUIT and wait at most 5 seconds for the answer; see ``Channel.close``."""
        client = self._client
        transport = client.transport if client is not None else None
        try:
            if client is not None:
                with contextlib.suppress(*BROKEN):  # it is being closed anyway
                    async with asyncio.timeout(QUIT_SECONDS):
                        await client.quit()
        finally:
            self._drop()
            _abort(transport)  # else TLS waits for an end of its own
            await asyncio.sleep(0)  # the loop may end now: let it close the socket

    def _drop(self) -> None:
        """Cut the connection: what was not sent yet is not to be sent any more."""
        if self._client is not None:
            _abort(self._client.transport)
            self._client.close()
        self._client = None

    async def _ready(self) -> SMTP:
        """Return a connection that may take a message: the kept one, or a new one, secured and logged in."""
        for _ in range(2):  # the loop stood still: let it hear what the server has said meanwhile
            await asyncio.sleep(0)
        if self._messages_sent >= self.messages_per_connection:
            await self.close()
        protocol = self._client.protocol if self._client is not None else None
        # An answer to which there was no question: all later ones would be taken for each other's.
        if self._client is not None and protocol is not None and protocol.is_connected and not protocol._buffer:
            return self._client
        self._drop()
        self._messages_sent = 0
        try:
            async with _phase(
                self.connect_seconds,
                lambda why: ChannelDownError(
                    f"the mail server cannot be used: {why}", next_step="check CERTJOB_NOTIFY_URL and the server"
                ),
            ):
                return await self._connect()
        except BaseException:
            self._drop()
            raise

    async def _connect(self) -> SMTP:
        # A server that smtp:// names must begin TLS, unless it is this machine's own; that, too, for a login.
        secured = self._implicit_tls or self._user is not None or self._host not in LOOPBACK_HOSTS
        if secured and self.tls is None:
            self.tls = ssl.create_default_context()
        self._client = client = SMTP(
            hostname=self._host,
            port=self._port,
            local_hostname=_client_name(),
            timeout=None,  # each phase has its own
            use_tls=self._implicit_tls,
            start_tls=False,
            tls_context=self.tls,
        )
        await client.connect()
        await client.ehlo()
        if secured and not self._implicit_tls:
            await self._secure(client)
        if self._user is not None:
            await self._log_in(client, self._user)
        return client

    async def _secure(self, client: SMTP) -> None:
        """Begin TLS; what the server said before it is forgotten (RFC 3207)."""
        if not client.supports_extension("starttls"):
            message = "the mail server offers no STARTTLS, without which certjob sends neither mail nor password"
            raise ChannelDownError(message, next_step="use smtps:// or a server with STARTTLS in CERTJOB_NOTIFY_URL")
        await client.starttls()
        await client.ehlo()

    async def _log_in(self, client: SMTP, user: str) -> None:
        """Log in by PLAIN or LOGIN, in one try: aiosmtplib's ``login`` tries every mechanism, CRAM-MD5 first."""
        password = self._password.get_secret_value()
        try:
            if "plain" in client.server_auth_methods:
                await client.auth_plain(user, password)
            elif "login" in client.server_auth_methods:
                await client.auth_login(user, password)
            else:
                offered = "the mail server offers no login that certjob knows (PLAIN, LOGIN)"
                raise ChannelDownError(offered, next_step="is CERTJOB_NOTIFY_URL right?")
        except SMTPAuthenticationError as error:
            coded = [auth_plain_encode(user, password), *auth_login_encode(user, password)]
            secrets = [*(code.decode("ascii") for code in coded), user, password]
            said = f"{error.code} {readable(error.message, secrets=secrets)}"
            if error.code == 421 or not 500 <= error.code < 600:
                message, next_step = "the mail server cannot take the login now", None
            else:
                message = "the mail server refused the login"
                next_step = "correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD"
            message = f"{message} ({said})"
            raise ChannelDownError(message, next_step=next_step) from None  # the answer may hold the password

    async def _announce(self, client: SMTP, *, recipient: MailAddress) -> SMTPProtocol:
        """Say from whom and for whom a message is, up to the 354 to DATA; return what takes the message then."""
        wire = cast("SMTPProtocol", client.protocol)  # it is connected
        options = []
        if recipient.international:
            if not client.supports_extension("smtputf8"):
                message = "the mail server takes no address with letters beyond ASCII before the @"
                raise RecipientRefusedError(message, next_step="correct the address", code=Cause.WRONG_ADDRESS)
            options = [b"SMTPUTF8"]
        # With SMTPUTF8 this recipient's letters may be what the server cannot pass on; the next one will tell.
        steps = [
            (
                "recipient" if options else "sender",
                [b"MAIL", _path("FROM", self._bounce_address), *options],
                range(200, 300),
            ),
            ("recipient", [b"RCPT", _path("TO", recipient)], range(200, 300)),
            ("message", [b"DATA"], range(354, 355)),
        ]
        broke = "the connection to the mail server broke before a message was handed over"
        async with _phase(self.envelope_seconds, lambda why: ChannelDownError(f"{broke}: {why}")):
            for what, command, success in steps:
                code, text = await wire.execute_command(*command)
                if wire._buffer or (code in success and not wire.is_connected):
                    message = "the mail server hung up, or said more than it was asked, before it had a message"
                    raise ChannelDownError(message)
                if code not in success:
                    raise _refusal(code, text, recipient=recipient, what=what)
        return wire

    async def _hand_over(self, wire: SMTPProtocol, data: bytes, *, recipient: MailAddress) -> None:
        """Send the message and hear what becomes of it."""
        silent = "no answer came after the message was handed over, so it may have arrived"
        async with _phase(self.answer_seconds, lambda why: OutcomeUnknownError(f"{silent}: {why}")):
            wire.write(_as_sent(data))
            code, text = await wire.read_response()
        if 400 <= code < 600:
            raise _refusal(code, text, recipient=recipient, what="message")
        if not 200 <= code < 300:
            message = "the answer after the message was handed over is not SMTP, so it may have arrived"
            raise OutcomeUnknownError(message)


@asynccontextmanager
async def _phase(seconds: float, failed: Callable[[str], NotifyError]) -> AsyncIterator[None]:
    """End what takes longer, and raise the error of this reason for whatever breaks a connection."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except BROKEN as broken:
        raise failed(_reason(broken)) from _cause(broken)


def _abort(transport: asyncio.BaseTransport | None) -> None:
    if transport is not None:
        cast("asyncio.WriteTransport", transport).abort()


def _client_name() -> str:
    """Return the name to greet with: this machine's own if it is a full one, else an address literal (RFC 5321, 4.1.4).

    No name lookup: it could take any time.
    """
    name = socket.gethostname()
    is_full = "." in name and name.replace(".", "").replace("-", "").isalnum() and name.isascii()
    return name if is_full else "[127.0.0.1]"


def _path(verb: str, address: MailAddress) -> bytes:
    return f"{verb}:<{address.specification}>".encode()


def _as_sent(data: bytes) -> bytes:
    """Return a message as it travels: each line ends in CRLF, a dot at its beginning is doubled, a lone dot ends it."""
    lines = re.sub(rb"\r\n|\r|\n", b"\r\n", data).removesuffix(b"\r\n") + b"\r\n"
    return re.sub(rb"(?m)^\.", b"..", lines) + b".\r\n"


def _refusal(code: int, text: str, *, recipient: MailAddress, what: str) -> NotifyError:
    """Return the error that says whose fault a failure with this answer is."""
    said = f"{code} {readable(text, recipient=recipient)}"
    if code in EVERYBODYS_CODES:
        return ChannelDownError(f"the mail server takes no messages ({said})")
    if what == "sender":
        return ChannelDownError(
            f"the mail server refused the sender ({said})",
            next_step="check CERTJOB_MAIL_FROM (or CERTJOB_BOUNCE_ADDRESS)",
        )
    if 400 <= code < 500:
        return RecipientDeferredError(f"the mail server put the {what} off ({said})")
    if 500 <= code < 600:
        why = Cause.WRONG_ADDRESS if what == "recipient" else Cause.MAIL_STOPPED
        return RecipientRefusedError(f"the mail server refused the {what} ({said})", code=why)
    return ChannelDownError(f"the server's answer about the {what} is not SMTP", next_step="check CERTJOB_NOTIFY_URL")


def _cause(error: BaseException) -> BaseException:
    """Return what is below the library's own errors: the system's, or TLS's."""
    while isinstance(error, SMTPException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: Exception) -> str:
    """Say in one line what happened to a connection; no such text holds what was sent."""
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
