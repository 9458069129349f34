"""The one definition of an e-mail address that certjob accepts and sends to."""

import contextlib
import re
from dataclasses import dataclass, replace

MAX_ADDRESS_OCTETS = 254
"""RFC 5321, 4.5.3.1.3: a path has at most 256 octets, with its angle brackets."""

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\u00a1-\U0010ffff-]+"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAMED = re.compile(r"(?P<name>[^<>@\"]*|\"[^<>@\"]*\"\s*)<(?P<address>[^<>]*)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class MailAddress:
    """A valid address."""

    local_part: str
    domain: str
    """ASCII; an international domain in its ``xn--`` form."""
    display_name: str = ""

    @property
    def specification(self) -> str:
        """The address alone, for SMTP commands."""
        return f"{self.local_part}@{self.domain}"

    @property
    def international(self) -> bool:
        """Whether only servers with SMTPUTF8 accept it (RFC 6531)."""
        return not self.local_part.isascii()


def parse_address(text: str) -> MailAddress:
    """Read one address without a name, such as ``kari@example.org``.

    Raises ValueError for any other text, for example a list, quotes, a control character, or a domain that DNS would
    change into another. The error does not repeat the address.
    """
    local_part, at, domain = text.strip(" ").rpartition("@")
    domain = domain if domain.isascii() else _ascii_domain(domain)
    if (
        not at
        or not _LOCAL_PART.fullmatch(local_part)
        or not local_part.isprintable()
        or "=?" in local_part  # a header would decode an encoded word, which may contain line breaks
        or not _DOMAIN.fullmatch(domain)
        or len(f"{local_part}@{domain}".encode()) > MAX_ADDRESS_OCTETS
    ):
        message = "is not an address that mail can be sent to"
        raise ValueError(message)
    return MailAddress(local_part=local_part, domain=domain)


def _ascii_domain(domain: str) -> str:
    with contextlib.suppress(UnicodeError):
        # The standard library implements the older IDNA, which maps some letters to others. ß becomes ss, for example,
        # and the result is another domain.
        ascii_domain = domain.encode("idna")
        if ascii_domain.decode("idna") == domain.lower():
            return ascii_domain.decode("ascii")
    message = "has a domain that cannot be written in DNS"
    raise ValueError(message)


def parse_sender(text: str) -> MailAddress:
    """Read an address, or a name and ``<address>``. The name may have quotes.

    Raises ValueError for any other text, and for letters beyond ASCII before the ``@``.
    """
    named = _NAMED.fullmatch(text.strip())
    address = parse_address(named["address"] if named else text)
    if address.international or not text.isprintable():
        message = "has a character that a sender cannot have"
        raise ValueError(message)
    return replace(address, display_name=named["name"].strip(' "')) if named else address


def parse_own_sender(text: str | None) -> MailAddress | None:
    """Read an organisation's sender or reply address; None if it is not valid, because the mail is sent anyway."""
    with contextlib.suppress(ValueError):
        return parse_sender(text or "")
    return None
