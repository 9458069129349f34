"""Classify the answers of mail servers, and make their text safe for a log."""

import re
from collections.abc import Iterable
from enum import Enum
from urllib.parse import quote

from certjob.domain.addresses import MailAddress
from certjob.redaction import foreign_line

_ABOUT_ADDRESS = frozenset({"1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.10", "2.0", "2.1", "6.7"})
"""Subject and detail of the enhanced status codes about the recipient (RFC 3463, 3.2 and 3.3; RFC 7505; RFC 6531).

1.7 and 1.8 are about the sender, 3.X, 4.X, 5.X and 7.X about the server. Exchange answers 4.1 for an unknown recipient,
but so does a server without a route for anyone.
"""


class Subject(Enum):
    """The subject of a rejection."""

    ADDRESS = "address"
    FULL_MAILBOX = "full mailbox"
    UNCLEAR = "unclear"
    """The address, if the server accepts others."""
    SERVER = "server"


def readable(text: str, *, recipient: MailAddress | None = None, secrets: Iterable[str] = ()) -> str:
    """Return the text as ``foreign_line`` does, with ``<recipient>`` instead of the recipient's address.

    A server repeats the received text, sometimes in another encoding than UTF-8.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    for form in _forms(recipient) if recipient is not None else ():
        text = re.sub(rf"<?(?<![\w.+-]){re.escape(form)}(?![\w+-])>?", "<recipient>", text, flags=re.IGNORECASE)
    return foreign_line(text, secrets=secrets)


def subject_of(rejection: str) -> Subject:
    """Return the subject of a reply of 5xx with its text, or of a delivery report's status with its text.

    The first enhanced status code decides, except 5.0.0, which Exim's reports have before the code of the reply.
    """
    codes = re.findall(r"(?<![\d.])5\.(\d{1,3}\.\d{1,3})(?![\d.])", rejection)
    if (code := next((code for code in codes if code != "0.0"), None)) is not None:
        return Subject.ADDRESS if code in _ABOUT_ADDRESS else Subject.FULL_MAILBOX if code == "2.2" else Subject.SERVER
    reply = re.search(r"(?<!\S)5\d\d(?![\d.])", rejection)
    match reply and reply[0]:
        case "552":
            return Subject.FULL_MAILBOX
        case "550" | "551" | "553":
            return Subject.UNCLEAR
    return Subject.SERVER


def _forms(address: MailAddress) -> list[str]:
    """Return how servers write an address: with a readable domain, as in DNS, in a link, in the sender of a bounce."""
    whole = address.specification
    with_readable_domain = f"{address.local_part}@{address.domain.encode('ascii').decode('idna')}"
    return [with_readable_domain, whole, quote(whole, safe=""), whole.replace("@", "="), address.local_part]
