"""Messages by SMTP: one recipient each, over a kept connection, with every failure told apart by whose fault it is."""

import base64
import contextlib
import smtplib
import ssl

from pydantic import SecretStr

from certjob.errors import (
    ChannelDownError,
    FailureCode,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
)
from certjob.mail.channels.server_text import readable
from certjob.mail.channels.smtp_connection import Deadline, SmtpConnection
from certjob.mail.message import EncodedMessage, MailAddress, OutgoingMessage, compose
from certjob.settings import LOOPBACK_HOSTS

QUIT_SECONDS = 5.0

EVERYBODYS_CODES = frozenset({421, 530, 534, 535, 538})
"""The server is closing (RFC 5321), or wants a login or another one (RFC 4954): no recipient is to blame."""


class SmtpChannel:
    """A mail server.

    Until the final dot no server may accept a message, so everything before it (a connection if there is none, TLS,
    login, the commands, the body) shares ``prepare_seconds``, and a failure there is known to be one. The answer to the
    dot has ``answer_seconds`` of its own: RFC 5321, 4.5.3.2.6, gives servers 10 minutes, and cutting it off early makes
    duplicates.
    """

    def __init__(
        self,
        host: str,
        *,
        port: int,
        sender: MailAddress,
        implicit_tls: bool = False,
        user: str | None = None,
        password: SecretStr | None = None,
        tls: ssl.SSLContext | None = None,
        step_seconds: float = 30,
        prepare_seconds: float = 120,
        answer_seconds: float = 600,
        messages_per_connection: int = 100,
    ) -> None:
        """Prepare; nothing is opened before the first ``send``. ``tls`` is for certificates that the system lacks."""
        self._host = host
        self._port = port
        self._sender = sender
        self._implicit_tls = implicit_tls
        self._user = user
        self._password = password or SecretStr("")
        self._tls = tls
        self._step_seconds = step_seconds
        self._prepare_seconds = prepare_seconds
        self._answer_seconds = answer_seconds
        self._messages_per_connection = messages_per_connection
        self._connection: SmtpConnection | None = None
        self._messages_sent = 0

    @property
    def worst_case_seconds(self) -> float:
        """The longest that one ``send`` can take; 720 unless told otherwise."""
        return self._prepare_seconds + self._answer_seconds

    def send(self, message: OutgoingMessage) -> None:
        """Hand one message over, in one try; see ``Channel.send``."""
        prepared, whole = Deadline(self._prepare_seconds), Deadline(self.worst_case_seconds)
        encoded = compose(message, sender=self._sender, line_end="\r\n")
        try:
            self._hand_over(self._ready(prepared), encoded=encoded)
        except (RecipientRefusedError, RecipientDeferredError):
            self._leave(whole)
            raise
        except BaseException:
            self._drop()
            raise
        self._messages_sent += 1

    def probe(self, *, seconds: float = 30) -> None:
        """Connect, secure, log in and do nothing (NOOP): all that comes before a message. Raises ChannelDownError."""
        deadline = Deadline(seconds)
        try:
            code, text = self._ready(deadline).docmd("NOOP")
        except OSError as error:
            message = f"the connection to the mail server broke: {_reason(error)}"
            raise ChannelDownError(message) from error
        finally:
            self._leave(deadline)
        if not 200 <= code < 300:
            message = f"the mail server takes no commands ({code} {readable(text)})"
            raise ChannelDownError(message)

    def close(self) -> None:
        """Say goodbye, for 5 seconds at most; see ``Channel.close``."""
        self._leave(Deadline(QUIT_SECONDS))

    def _ready(self, deadline: Deadline) -> SmtpConnection:
        """Return a connection that may take a message: the kept one, or a new one, secured and logged in."""
        if self._connection is not None and self._messages_sent >= self._messages_per_connection:
            self._leave(deadline)
        if self._connection is not None:
            self._connection.allow(deadline)
            return self._connection
        try:
            self._connection = connection = SmtpConnection(
                self._host,
                self._port,
                deadline=deadline,
                step_seconds=self._step_seconds,
                implicit_tls=self._context() if self._implicit_tls else None,
            )
            self._messages_sent = 0
            connection.ehlo_or_helo_if_needed()
            self._secure(connection)
            if self._user is not None:
                self._log_in(connection)
        except OSError as error:
            message = f"the mail server cannot be used: {_reason(error)}; check CERTJOB_NOTIFY_URL and the server"
            raise ChannelDownError(message) from error
        return connection

    def _context(self) -> ssl.SSLContext:
        self._tls = self._tls or ssl.create_default_context()
        return self._tls

    def _secure(self, connection: SmtpConnection) -> None:
        """Begin TLS where it is required: everywhere but on loopback without a login."""
        if connection.encrypted or not tls_is_required(self._host, login=self._user is not None):
            return
        if not connection.has_extn("starttls"):
            advice = "use smtps:// or a server with STARTTLS in CERTJOB_NOTIFY_URL"
            if self._user is not None:
                message = f"the mail server offers no STARTTLS, and certjob never logs in without TLS; {advice}"
            else:
                message = f"the mail server offers no STARTTLS, and mail leaves this machine encrypted only; {advice}"
            raise ChannelDownError(message)
        code, text = connection.start_tls(self._context())
        if code != 220:
            message = f"the mail server refused STARTTLS ({code} {readable(text)})"
            raise ChannelDownError(message)
        connection.ehlo_or_helo_if_needed()

    def _log_in(self, connection: SmtpConnection) -> None:
        """Log in by PLAIN or LOGIN, in UTF-8, in one try: smtplib's own login is ASCII and tries every mechanism."""
        user, password = self._user or "", self._password.get_secret_value()
        tokens = [_base64(f"\0{user}\0{password}"), _base64(user), _base64(password)]
        offered = connection.esmtp_features.get("auth", "").upper().split()
        if "PLAIN" in offered:
            code, text = connection.docmd("AUTH", f"PLAIN {tokens[0]}")
        elif "LOGIN" in offered:
            code, text = connection.docmd("AUTH", f"LOGIN {tokens[1]}")
            if code == 334:
                code, text = connection.docmd(tokens[2])
        else:
            message = "the mail server offers no login that certjob knows (PLAIN, LOGIN); is CERTJOB_NOTIFY_URL right?"
            raise ChannelDownError(message)
        if 200 <= code < 300:
            return
        said = f"{code} {readable(text, secrets=[*tokens, user, password])}"
        if code == 421 or not 500 <= code < 600:
            message = f"the mail server cannot take the login now ({said})"
            raise ChannelDownError(message)
        message = f"the mail server refused the login ({said}); correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD"
        raise ChannelDownError(message)

    def _hand_over(self, connection: SmtpConnection, *, encoded: EncodedMessage) -> None:
        """Go through the commands for one message; until the final dot is sent, every failure is certain."""
        try:
            self._send_until_the_end(connection, encoded=encoded)
            connection.send_end(Deadline(self._answer_seconds))
        except OSError as error:
            message = f"the connection to the mail server broke before a message was handed over: {_reason(error)}"
            raise ChannelDownError(message) from error
        try:
            code, text = connection.getreply()
        except OSError as error:
            message = f"no answer came after the message was handed over, so it may have arrived: {_reason(error)}"
            raise OutcomeUnknownError(message) from error
        if 400 <= code < 600:
            raise _refusal(code, text, recipient=encoded.recipient, what="message")
        if not 200 <= code < 300:
            message = "the answer after the message was handed over is no SMTP, so it may have arrived"
            raise OutcomeUnknownError(message)

    def _send_until_the_end(self, connection: SmtpConnection, *, encoded: EncodedMessage) -> None:
        """Say for whom it is and send it, all but the final dot; raises OSError or the error of a refusal."""
        recipient = encoded.recipient
        options = ""
        if recipient.international:
            if not connection.has_extn("smtputf8"):
                message = "the mail server takes no address with letters beyond ASCII before the @; correct the address"
                raise RecipientRefusedError(message, code=FailureCode.ADDRESS_NOT_SUPPORTED)
            connection.command_encoding = "utf-8"
            options = " SMTPUTF8"
        code, text = connection.docmd("MAIL", f"FROM:<{self._sender.specification}>{options}")
        if not 200 <= code < 300:
            # With SMTPUTF8 this recipient's letters may be what the server cannot pass on; the next one will tell.
            what = "recipient" if recipient.international else "sender"
            raise _refusal(code, text, recipient=recipient, what=what)
        code, text = connection.docmd("RCPT", f"TO:<{recipient.specification}>")
        if not 200 <= code < 300:
            raise _refusal(code, text, recipient=recipient, what="recipient")
        code, text = connection.docmd("DATA")
        if code != 354:
            raise _refusal(code, text, recipient=recipient, what="message")
        connection.send_body(encoded.data)
        early = connection.early_reply()
        if early is not None:
            self._drop()  # a QUIT would be one more line of the message
            raise _refusal(*early, recipient=recipient, what="message")

    def _leave(self, deadline: Deadline) -> None:
        """Close politely, within 5 seconds and the deadline."""
        if self._connection is not None:
            with contextlib.suppress(OSError):  # it is being closed anyway
                self._connection.allow(deadline.at_most(QUIT_SECONDS))
                self._connection.docmd("QUIT")
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def tls_is_required(host: str, *, login: bool) -> bool:
    """Whether a server named by ``smtp://`` must begin TLS: any but this machine's own, and that too for a login."""
    return login or host not in LOOPBACK_HOSTS


def _refusal(code: int, text: bytes, *, recipient: MailAddress, what: str) -> NotifyError:
    """Turn an answer that is no success into the error that says whose fault it is."""
    said = f"{code} {readable(text, recipient=recipient)}"
    if code in EVERYBODYS_CODES:
        return ChannelDownError(f"the mail server takes no messages ({said})")
    if what == "sender":
        return ChannelDownError(f"the mail server refused the sender ({said}); check CERTJOB_MAIL_FROM")
    if 400 <= code < 500:
        return RecipientDeferredError(f"the mail server put the {what} off ({said})")
    if 500 <= code < 600:
        code_of_refusal = FailureCode.ADDRESS_REFUSED if what == "recipient" else FailureCode.MESSAGE_REFUSED
        return RecipientRefusedError(f"the mail server refused the {what} ({said})", code=code_of_refusal)
    return ChannelDownError(f"the server's answer about the {what} is no SMTP; check CERTJOB_NOTIFY_URL")


def _reason(error: OSError) -> str:
    """Say in one line what happened to a connection; no such text holds what was sent."""
    if isinstance(error, smtplib.SMTPServerDisconnected) and isinstance(error.__context__, OSError):
        error = error.__context__
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({error.verify_message})"
        case TimeoutError():
            return "it did not answer in time"
        case smtplib.SMTPResponseException():
            return f"it answered {error.smtp_code} {readable(error.smtp_error)}"
        case _:
            return readable(error.strerror or str(error))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode("ascii")
