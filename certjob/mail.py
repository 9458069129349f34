"""E-mail as bytes: addresses that can be sent to, and a message with a text and an HTML part."""

import contextlib
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.errors import MessageError
from email.header import Header
from email.headerregistry import Address, BaseHeader, HeaderRegistry
from email.message import EmailMessage
from email.policy import EmailPolicy, Policy
from email.utils import format_datetime, formataddr
from typing import Any

from certjob.channel import OutgoingMessage
from certjob.errors import RecipientRefusedError

MAX_ADDRESS_OCTETS = 254
"""RFC 5321, 4.5.3.1.3: a path is at most 256 octets, its angle brackets included."""

MAX_LINE_CHARACTERS = 78
"""RFC 5322, 2.1.1: what a line of a header should not exceed."""

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a1-\U0010ffff-]+"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAMED = re.compile(r"\s*(?P<name>[^<>@\"]*|\"[^<>@\"]*\")\s*<(?P<address>[^<>]*)>\s*")
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
    named = _NAMED.fullmatch(text)
    address = parse_address(named["address"] if named else text)
    if address.international or not text.isprintable():
        message = "has a character that a sender cannot have"
        raise ValueError(message)
    return replace(address, display_name=named["name"].strip(' "')) if named else address


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message ready to go."""

    recipient: MailAddress
    data: bytes


def compose(message: OutgoingMessage, *, sender: MailAddress, policy: "EmailPolicy[EmailMessage]") -> Letter:
    """Build the message as it goes over the wire or into a folder; ``policy`` decides about line ends.

    Raises RecipientRefusedError when the address is none, or a header or a text cannot be written.
    """
    try:
        recipient = parse_address(message.to)
    except ValueError as error:
        text = f"the e-mail address {error}; correct it"
        raise RecipientRefusedError(text) from None
    try:
        return Letter(recipient=recipient, data=_build(message, sender=sender, recipient=recipient, policy=policy))
    except (ValueError, MessageError) as error:
        text = "the message has a header or a character that cannot be written; correct the mentor's or the template's"
        raise RecipientRefusedError(text) from error


def _build(
    message: OutgoingMessage, *, sender: MailAddress, recipient: MailAddress, policy: "EmailPolicy[EmailMessage]"
) -> bytes:
    if not _MESSAGE_ID.fullmatch(message.message_id):
        problem = "the message id is malformed"
        raise ValueError(problem)
    email = EmailMessage(policy=policy.clone(utf8=recipient.international, header_factory=_HEADERS))
    email["From"] = f"{sender.display_name} <{sender.specification}>".strip()
    email["To"] = Address("", recipient.local_part, recipient.domain)
    email["Subject"] = message.subject
    email["Date"] = format_datetime(datetime.now(UTC))
    email["Message-ID"] = message.message_id
    email["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday replies, please
    answers_to = _answers_to(message.reply_to)
    if answers_to is not None:
        email["Reply-To"] = Address("", answers_to.local_part, answers_to.domain)
    # Quoted-printable, since a server on the way need not take 8 bits.
    email.set_content(message.text, cte="quoted-printable")
    email.add_alternative(message.html, subtype="html", cte="quoted-printable")
    return email.as_bytes()


def _answers_to(text: str | None) -> MailAddress | None:
    """Read where answers go; None when that is no address, which must not keep the message from its reader.

    Nor one with letters beyond ASCII before the ``@``: not every server and not every reader's program can take it.
    """
    with contextlib.suppress(ValueError):
        address = parse_address(text or "")
        return None if address.international else address
    return None


class _OwnHeader(BaseHeader):
    """A header that is written by rules of ours: what it was given is what it says."""

    max_count = 1

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        kwds.update(decoded=value, parse_tree=None)


class _WholeHeader(_OwnHeader):
    """A header in one line, however long: some programs find no Message-ID that begins on the second one."""

    def fold(self, *, policy: Policy) -> str:
        return f"{self.name}: {self}{policy.linesep}"


class _SubjectHeader(_OwnHeader):
    """A subject that arrives letter by letter as it was written.

    The standard library's own decodes a ``=?utf-8?q?…?=`` that it is given, line ends and all, and so lets a header in;
    and where it folds a line between words with letters beyond ASCII, it loses or doubles the space.
    """

    def fold(self, *, policy: Policy) -> str:
        text = str(self)
        # Readable as it travels where that is possible: then it can end its lines only between words.
        fits = max(map(len, text.split(" "))) < MAX_LINE_CHARACTERS - len("Subject: ")
        header = Header(text, "us-ascii" if _is_plain(text) and fits else "utf-8", header_name="Subject")
        return f"Subject: {header.encode(linesep=policy.linesep)}{policy.linesep}"


class _SenderHeader(_OwnHeader):
    """``Name <address>`` whose name arrives as it was written; the standard library's own loses spaces, as above."""

    def fold(self, *, policy: Policy) -> str:
        name, _, address = str(self).rpartition("<")
        name, address = name.rstrip(), address.rstrip(">")
        written = formataddr((name, address)) if _is_plain(name) else ""
        if not 0 < len(written) <= MAX_LINE_CHARACTERS - len("From: "):
            phrase = Header(name, "utf-8", header_name="From").encode(linesep=policy.linesep)
            written = f"{phrase}{policy.linesep} <{address}>"
        return f"From: {written}{policy.linesep}"


def _is_plain(text: str) -> bool:
    """Whether a header can hold it without encoding, and nobody decodes it into something else."""
    return text.isascii() and text.isprintable() and "=?" not in text


_HEADERS = HeaderRegistry()
_HEADERS.map_to_type("subject", _SubjectHeader)
_HEADERS.map_to_type("from", _SenderHeader)
_HEADERS.map_to_type("message-id", _WholeHeader)
