"""What a server said, made fit for a log: one line, no addresses of people, no secrets."""

import re
from collections.abc import Iterable
from urllib.parse import quote

from certjob.domain.addresses import MailAddress
from certjob.redaction import one_line, without_addresses

MAX_CHARACTERS = 300


def readable(text: str, *, recipient: MailAddress | None = None, secrets: Iterable[str] = ()) -> str:
    """Return the text in one line of at most 300 characters.

    Servers echo what they were sent: the recipient becomes ``<recipient>``, any other address ``<address>``, a secret
    ``<secret>``.
    """
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # bytes that are no letters
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        shown = shown.replace(secret, "<secret>")
    if recipient is not None:
        for form in _forms(recipient):
            shown = re.sub(rf"<?(?<![\w.+-]){re.escape(form)}(?![\w+-])>?", "<recipient>", shown, flags=re.IGNORECASE)
    return one_line(without_addresses(shown))[:MAX_CHARACTERS]


def _forms(address: MailAddress) -> list[str]:
    """Return the ways in which servers write an address: as people do, as DNS does, in a link, in a bounce's sender."""
    whole = address.specification
    as_typed = f"{address.local_part}@{address.domain.encode('ascii').decode('idna')}"
    return [as_typed, whole, quote(whole, safe=""), whole.replace("@", "="), address.local_part]
