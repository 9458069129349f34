"""Make the text of a server safe for a log: one line, without addresses and secrets."""

import re
from collections.abc import Iterable
from urllib.parse import quote

from certjob.domain.addresses import MailAddress
from certjob.redaction import foreign_line


def readable(text: str, *, recipient: MailAddress | None = None, secrets: Iterable[str] = ()) -> str:
    """Return the text as ``foreign_line`` does, with ``<recipient>`` instead of the recipient's address.

    A server repeats the received text, sometimes in another encoding than UTF-8.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    for form in _forms(recipient) if recipient is not None else ():
        text = re.sub(rf"<?(?<![\w.+-]){re.escape(form)}(?![\w+-])>?", "<recipient>", text, flags=re.IGNORECASE)
    return foreign_line(text, secrets=secrets)


def is_mailbox_full(answer: str) -> bool:
    """Return whether an answer of a mail server, or a delivery report, says that the mailbox is full.

    It has the status X.2.2 (RFC 3463), or is a 552 without a status (RFC 5321, 4.2.2).
    """
    return re.search(r"(?<![\d.])[45]\.2\.2(?![\d.])|^552(?! [45]\.\d)", answer) is not None


def _forms(address: MailAddress) -> list[str]:
    """Return how servers write an address: with a readable domain, as in DNS, in a link, in the sender of a bounce."""
    whole = address.specification
    with_readable_domain = f"{address.local_part}@{address.domain.encode('ascii').decode('idna')}"
    return [with_readable_domain, whole, quote(whole, safe=""), whole.replace("@", "="), address.local_part]
