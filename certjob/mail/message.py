"""E-mail as bytes: addresses that can be sent to, and a message with a text and an HTML part."""

import contextlib
import quopri
import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from email.errors import MessageError
from email.header import Header
from email.utils import format_datetime, formataddr
from functools import lru_cache
from typing import Protocol
from uuid import UUID

from certjob.errors import FailureCode, RecipientRefusedError

MAX_ADDRESS_OCTETS = 254
"""RFC 5321, 4.5.3.1.3: a path is at most 256 octets, its angle brackets included."""

MAX_LINE_CHARACTERS = 78
"""RFC 5322, 2.1.1: what a line of a header should not exceed."""

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a1-\U0010ffff-]+"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAMED = re.compile(r"(?P<name>[^<>@\"]*|\"[^<>@\"]*\"\s*)<(?P<address>[^<>]*)>")
_BOUNDARY = "=_certjob"
"""Stands between the parts and can stand in none: quoted-printable never writes ``=_`` (RFC 2045, 6.7)."""
_MESSAGE_ID = re.compile(r"<[!-;=?A-Z\[-~]+@[!-;=?A-Z\[-~]+>")


@dataclass(frozen=True, slots=True, kw_only=True)
class MailAddress:
    """An address that mail can be sent to, with the domain as DNS knows it."""

    local_part: str
    domain: str
    """ASCII; an international domain in its ``xn--`` form."""
    display_name: str = ""

    @property
    def specification(self) -> str:
        """The address alone, as SMTP commands take it."""
        return f"{self.local_part}@{self.domain}"

    @property
    def international(self) -> bool:
        """Whether only servers with SMTPUTF8 can take it (RFC 6531)."""
        return not self.local_part.isascii()


def parse_address(text: str) -> MailAddress:
    """Read one bare address, such as ``kari@example.org``.

    Raises ValueError, whose text does not repeat the address, for anything else: a name before it, a list, quotes, a
    control character, a domain that cannot be written in DNS without becoming another one.
    """
    local_part, at, domain = text.strip(" ").rpartition("@")
    domain = _ascii_domain(domain)
    address = MailAddress(local_part=local_part, domain=domain)
    if (
        not at
        or not _LOCAL_PART.fullmatch(local_part)
        or not local_part.isprintable()
        or "=?" in local_part  # an encoded word: in a header it would become what it stands for, line ends too
        or not _DOMAIN.fullmatch(domain)
        or len(address.specification.encode()) > MAX_ADDRESS_OCTETS
    ):
        message = "is no address that mail can be sent to"
        raise ValueError(message)
    return address


def _ascii_domain(domain: str) -> str:
    if domain.isascii():
        return domain
    with contextlib.suppress(UnicodeError):
        # The standard library has the older IDNA, which turns some letters into others: ß into ss is another domain.
        ascii_domain = domain.encode("idna")
        if ascii_domain.decode("idna") == domain.lower():
            return ascii_domain.decode("ascii")
    message = "has a domain that cannot be written in DNS"
    raise ValueError(message)


def parse_sender(text: str) -> MailAddress:
    """Read the sender: an address, or ``Name <address>``, the name with or without quotes.

    Raises ValueError when it is not exactly one such address, or has letters beyond ASCII before the ``@``.
    """
    named = _NAMED.fullmatch(text.strip())
    address = parse_address(named["address"] if named else text)
    if address.international or not text.isprintable():
        message = "has a character that a sender cannot have"
        raise ValueError(message)
    return replace(address, display_name=named["name"].strip(' "')) if named else address


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedMessage:
    """A message ready to go."""

    recipient: MailAddress
    data: bytes


def _part(text: str, *, subtype: str) -> list[str]:
    """Write one part in quoted-printable, since a server on the way need not take 8 bits."""
    whole_lines = b"".join(line + b"\n" for line in text.encode().splitlines())
    return [
        f"--{_BOUNDARY}",
        f'Content-Type: text/{subtype}; charset="utf-8"',
        "Content-Transfer-Encoding: quoted-printable",
        "",
        quopri.encodestring(whole_lines).decode("ascii"),
    ]


def parse_reply_to(text: str | None) -> MailAddress | None:
    """Read where answers go; None when that is no address, which must not keep the message from its reader.

    Nor one with letters beyond ASCII before the ``@``: not every server and not every reader's program can take it.
    """
    with contextlib.suppress(ValueError):
        address = parse_address(text or "")
        return None if address.international else address
    return None


@lru_cache(maxsize=1024)  # the messages of a night share few subjects, and one takes half a millisecond
def _subject_header(text: str) -> str:
    """Write a subject that arrives letter by letter. Raises ValueError for one of several lines."""
    if "".join(text.splitlines()) != text:
        problem = "the subject has more than one line"
        raise ValueError(problem)
    # Readable as it travels where that is possible: then it can end its lines only between words.
    fits = max(map(len, text.split(" "))) < MAX_LINE_CHARACTERS - len("Subject: ")
    header = Header(text, "us-ascii" if _is_plain(text) and fits else "utf-8", header_name="Subject")
    return f"Subject: {header.encode()}"


@lru_cache(maxsize=16)  # all messages have the same sender
def _sender_header(name: str, address: str) -> str:
    """Write ``Name <address>`` whose name arrives letter by letter."""
    if not name:
        return f"From: {address}"
    # Outside an encoded word two spaces are read as one.
    written = formataddr((name, address)) if _is_plain(name) and "  " not in name else ""
    if not 0 < len(written) <= MAX_LINE_CHARACTERS - len("From: "):
        written = f"{Header(name, 'utf-8', header_name='From').encode()}\n <{address}>"
    return f"From: {written}"


def _is_plain(text: str) -> bool:
    """Whether a header can hold it without encoding, and nobody decodes it into something else."""
    return text.isascii() and text.isprintable() and "=?" not in text


def message_id(key: str, *, domain: str) -> str:
    """Return the Message-ID of the message with this key."""
    return f"<certjob-{key}@{domain}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingMessage:
    """One rendered message for one person."""

    to: str
    """The address as the database has it, unchecked."""
    subject: str
    text: str
    html: str
    message_id: str
    """With its angle brackets; the same on every repeat."""
    idempotency_key: str
    """The same on every repeat; a webhook's receiver uses it to drop the second copy."""
    locale: str
    kind: str
    """What the message is: ``reminder``, ``digest``, ``preview`` or ``test``."""
    repeat: bool
    """Whether an earlier try may have arrived already."""
    mentor_id: UUID | None = None
    """Whom a reminder is about."""
    threshold_days: int | None = None
    """Days before the expiry; negative = after it."""
    expires_on: date | None = None
    reply_to: str | None = None
    """Where an answer goes, unchecked: whoever has a question presses "reply". None: to the sender."""


def compose(message: OutgoingMessage, *, sender: MailAddress, line_end: str) -> EncodedMessage:
    """Build the message as it goes over the wire or into a folder.

    Raises RecipientRefusedError when the address is none, or a header or a text cannot be written.
    """
    try:
        recipient = parse_address(message.to)
    except ValueError as error:
        text = f"the e-mail address {error}; correct it"
        raise RecipientRefusedError(text, code=FailureCode.BAD_ADDRESS) from None
    try:
        return EncodedMessage(
            recipient=recipient, data=_build(message, sender=sender, recipient=recipient, line_end=line_end)
        )
    except (ValueError, MessageError) as error:
        text = "the message has a header or a character that cannot be written; correct the mentor's or the template's"
        raise RecipientRefusedError(text) from error


def _build(message: OutgoingMessage, *, sender: MailAddress, recipient: MailAddress, line_end: str) -> bytes:
    """Write the headers, which are ours and known, and the text and the page as two parts that say the same.

    The standard library's EmailMessage parses every header that it is given and again every one that it writes: that
    took 2 ms, more than anything else about a mail. And it loses or doubles spaces where it folds a line.
    """
    if not _MESSAGE_ID.fullmatch(message.message_id):
        problem = "the message id is malformed"
        raise ValueError(problem)
    reply_to = parse_reply_to(message.reply_to)
    lines = [
        _sender_header(sender.display_name, sender.specification),
        f"To: {recipient.specification}",  # with SMTPUTF8 in letters beyond ASCII, too (RFC 6532)
        _subject_header(message.subject),
        f"Date: {format_datetime(datetime.now(UTC))}",
        f"Message-ID: {message.message_id}",  # however long: some programs find none that begins on the second line
        "Auto-Submitted: auto-generated",  # RFC 3834: no holiday replies, please
        *([] if reply_to is None else [f"Reply-To: {reply_to.specification}"]),
        "MIME-Version: 1.0",
        f'Content-Type: multipart/alternative; boundary="{_BOUNDARY}"',
        "",
        *_part(message.text, subtype="plain"),
        *_part(message.html, subtype="html"),
        f"--{_BOUNDARY}--",
        "",
    ]
    return "\n".join(lines).replace("\n", line_end).encode()


class Channel(Protocol):
    """A way out for messages; not shared between threads."""

    @property
    def worst_case_seconds(self) -> float:
        """The longest that one ``send`` can take."""

    def send(self, message: OutgoingMessage) -> None:
        """Hand one message over, in one try; returns once it was accepted.

        Raises RecipientRefusedError, RecipientDeferredError, OutcomeUnknownError or ChannelDownError; no text of theirs
        holds the recipient's address or a secret.
        """

    def close(self) -> None:
        """Let go of connections; the next ``send`` opens them again. Takes 5 seconds at most and raises nothing."""


def domain_of(mail_from: str | None) -> str:
    """Return the right side of every Message-ID; a channel that needs a sender has checked it already."""
    try:
        return parse_sender(mail_from or "").domain
    except ValueError:
        return "certjob.invalid"
