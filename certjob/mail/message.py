"""A mail as values, as bytes, and the way out that takes it."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.charset import QP, Charset
from email.errors import MessageError
from email.header import Header
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import compat32
from email.utils import format_datetime, formataddr
from hashlib import sha256
from typing import Protocol
from uuid import UUID

from certjob.domain.addresses import MailAddress, parse_address, parse_own_sender
from certjob.errors import Cause, RecipientRefusedError
from certjob.redaction import one_line

MAX_LINE_CHARACTERS = 78
"""RFC 5322, 2.1.1: what a line of a header should not exceed."""

_UTF8 = Charset("utf-8")
_UTF8.body_encoding = QP  # a text stays readable as it travels; by default it would be base64
_BOUNDARY = "=_certjob"
"""Stands between the parts and can stand in none: quoted-printable never writes ``=_`` (RFC 2045, 6.7)."""
_UNFOLDED = compat32.clone(max_line_length=None)
"""Headers are folded here where they may be: some programs find no Message-ID that begins on the second line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingMessage:
    """One rendered message for one person."""

    to: str
    """The address as the database has it, unchecked."""
    to_name: str | None = None
    """Whose address it is."""
    subject: str
    text: str
    html: str
    idempotency_key: str
    """The same on every repeat; a webhook's receiver uses it to drop the second copy. The Message-ID is made of it."""
    locale: str
    kind: str
    """What the message is: ``reminder``, ``digest`` or ``test``."""
    repeat: bool
    """Whether an earlier try may have arrived already."""
    mentor_id: UUID | None = None
    """Whom a reminder is about."""
    threshold_days: int | None = None
    """Days before the expiry; negative = after it."""
    expires_on: date | None = None
    reply_to: str | None = None
    """Where an answer goes, unchecked: whoever has a question presses "reply". None: to the sender."""
    sender: str | None = None
    """The organisation's own sender, unchecked. None: the channel's."""
    list_name: str | None = None
    """What a mail program can sort a daily message by (RFC 2919)."""


class Channel(Protocol):
    """A way out for messages, used by one task at a time."""

    @property
    def worst_case_seconds(self) -> float:
        """The longest that one ``send`` can take."""

    async def send(self, message: OutgoingMessage) -> None:
        """Hand one message over, in one try; returns once it was accepted.

        Raises RecipientRefusedError, RecipientDeferredError, OutcomeUnknownError or ChannelDownError; no text of theirs
        holds the recipient's address or a secret.
        """

    async def probe(self) -> str:
        """Try all that comes before a message and return what was found. Raises ChannelDownError."""

    async def close(self) -> None:
        """Let go of connections; the next ``send`` opens them again. Takes 5 seconds at most and raises nothing."""


def compose(message: OutgoingMessage, *, sender: MailAddress) -> tuple[MailAddress, bytes]:
    """Return the recipient and the message as a mail program writes it, lines ended by a line feed.

    It is from the organisation's own sender where there is one. The envelope stays the channel's: bounces have one
    mailbox.

    Raises RecipientRefusedError when the address is not one, or a header or a text cannot be written.
    """
    try:
        recipient = parse_address(message.to)
    except ValueError as error:
        text = f"the e-mail address {error}"
        raise RecipientRefusedError(text, next_step="correct it", code=Cause.WRONG_ADDRESS) from None
    try:
        return recipient, _build(message, sender=sender, recipient=recipient)
    except (ValueError, MessageError) as error:
        text = "the message has a header or a character that cannot be written"
        raise RecipientRefusedError(text, next_step="correct the mentor's or the template's") from error


def _build(message: OutgoingMessage, *, sender: MailAddress, recipient: MailAddress) -> bytes:
    """Write headers, text and page.

    Not by EmailMessage, which damages a subject in some folds: 106 of 1,500 came back with a space lost or doubled.
    """
    author = parse_own_sender(message.sender) or sender
    mail = MIMEMultipart("alternative", boundary=_BOUNDARY)
    mail["From"] = _address_header("From", author.display_name, author.specification)
    # Letters beyond ASCII as they are, for SMTPUTF8 (RFC 6532); the standard library takes them as surrogates.
    address = recipient.specification.encode().decode("ascii", "surrogateescape")
    mail["To"] = _address_header("To", one_line(message.to_name), address)
    mail["Subject"] = _subject_header(message.subject)
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = message_id(message.idempotency_key, sender=sender)
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday replies, please
    mail["X-Auto-Response-Suppress"] = "All"  # the same for Exchange, which does not read the line above
    mail["Content-Language"] = message.locale
    if message.list_name is not None:
        mail["List-Id"] = f"<{message.list_name}.{sender.domain}>"
    reply_to = parse_own_sender(message.reply_to)
    if reply_to is not None:
        mail["Reply-To"] = reply_to.specification
    for text, subtype in ((message.text, "plain"), (message.html, "html")):
        text.encode()  # raises ValueError for half a character, which MIMEText would send as it is
        mail.attach(MIMEText(text, subtype, _UTF8))  # type: ignore[arg-type]  # it takes a Charset, too
    return mail.as_bytes(policy=_UNFOLDED)


def _subject_header(text: str) -> str:
    """Write a subject that arrives letter by letter. Raises ValueError for one of several lines."""
    if "".join(text.splitlines()) != text:
        problem = "the subject has more than one line"
        raise ValueError(problem)
    # Readable as it travels where that is possible: then it can end its lines only between words.
    fits = max(map(len, text.split(" "))) < MAX_LINE_CHARACTERS - len("Subject: ")
    return Header(text, "us-ascii" if _is_plain(text) and fits else "utf-8", header_name="Subject").encode()


def _address_header(header: str, name: str, address: str) -> str:
    """Write ``Name <address>`` whose name arrives letter by letter."""
    written = f"{_quoted(name)} <{address}>" if _is_plain(name) and "  " not in name else ""
    if not name or 0 < len(written) <= MAX_LINE_CHARACTERS - len(f"{header}: "):
        return written if name else address
    return f"{Header(name, 'utf-8', header_name=header).encode()}\n <{address}>"


def _quoted(name: str) -> str:
    """Return the name as formataddr writes it, which refuses an address beyond ASCII."""
    return formataddr((name, "a@b")).removesuffix(" <a@b>")


def _is_plain(text: str) -> bool:
    """Whether a header can hold it without encoding, and nobody decodes it into something else."""
    return text.isascii() and text.isprintable() and "=?" not in text


def key_hash(*about: object) -> str:
    """Return the part of an idempotency key that says what the message is about."""
    return sha256(":".join(map(str, about)).encode()).hexdigest()[:8]


def message_id(key: str, *, sender: MailAddress) -> str:
    """Return the Message-ID of the message with this key; by ``sender``, whatever sender an organisation has."""
    return f"<certjob-{key}@{sender.domain}>"
