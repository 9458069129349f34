"""What a server said, made fit for a log: one line, no addresses of people, no secrets."""

import re
from collections.abc import Iterable
from urllib.parse import quote

from certjob.domain.addresses import MailAddress
from certjob.redaction import foreign_line


def readable(text: str, *, recipient: MailAddress | None = None, secrets: Iterable[str] = ()) -> str:
    """Return the text as ``foreign_line`` does, and with ``<recipient>`` in place of that address.

    Servers echo what they were sent, and not always in UTF-8.
    """
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    for form in _forms(recipient) if recipient is not None else ():
        text = re.sub(rf"<?(?<![\w.+-]){re.escape(form)}(?![\w+-])>?", "<recipient>", text, flags=re.IGNORECASE)
    return foreign_line(text, secrets=secrets)


def _forms(address: MailAddress) -> list[str]:
    """Return the ways in which servers write an address: as people do, as DNS does, in a link, in a bounce's sender."""
    whole = address.specification
    as_typed = f"{address.local_part}@{address.domain.encode('ascii').decode('idna')}"
    return [as_typed, whole, quote(whole, safe=""), whole.replace("@", "="), address.local_part]
