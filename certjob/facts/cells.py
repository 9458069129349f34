"""Read the values of files and options from text, or raise ValueError with a reason.

Every function takes trimmed text that is not empty. The reason is printed and logged, so it never quotes the text.
"""

import re
import unicodedata
from collections.abc import Mapping
from datetime import date
from uuid import UUID

from certjob.domain.addresses import parse_address

LOCALES = ("nb", "nn", "en")

_ISO_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_NORWEGIAN_DATE = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})")
_UUID = re.compile(r"\{?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\}?", re.IGNORECASE)
_SPACES = re.compile("[ \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
# Allowed in names: Persian and Indic names need joiners, and hyphenated text has soft hyphens.
_HARMLESS_IN_NAMES = str.maketrans(dict.fromkeys("\xad\u200c\u200d", ""))
# Invisible letters, marks and symbols that Unicode calls printable.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def read_text(text: str, *, limit: int) -> str:
    """Return the text on one line, in composed letters and with single spaces."""
    composed = unicodedata.normalize("NFC", _SPACES.sub(" ", text))
    if len(composed) > limit:
        message = f"longer than {limit} characters"
        raise ValueError(message)
    if not composed.translate(_HARMLESS_IN_NAMES).isprintable():
        message = "has a control character or an invisible one"
        raise ValueError(message)
    return composed


def read_key(text: str) -> str:
    """Return a member number or a kind. An invisible character would make it another one."""
    key = read_text(text, limit=100)
    if not key.isascii() and (not key.isprintable() or _BLANK.search(key)):
        message = "has a control character or an invisible one"
        raise ValueError(message)
    return key


def read_name(text: str) -> str:
    """Return a name of at most 200 characters; a line break in a cell becomes a space."""
    return read_text(re.sub(r"[\t\r\n]+", " ", text), limit=200)


def read_date(text: str) -> date:
    """Return the date in ``2026-12-31`` or ``31.12.2026``."""
    iso, norwegian = _ISO_DATE.fullmatch(text), _NORWEGIAN_DATE.fullmatch(text)
    parts = iso.groups() if iso else norwegian.groups()[::-1] if norwegian else ("0", "0", "0")
    try:
        return date(*map(int, parts))
    except ValueError:
        message = "not a date such as 2026-12-31 or 31.12.2026"
        raise ValueError(message) from None


def read_email(text: str) -> str:
    """Return an e-mail address; it need not exist."""
    try:
        parse_address(text)
    except ValueError:
        message = "not a valid e-mail address"
        raise ValueError(message) from None
    return text


def read_locale(text: str) -> str:
    """Return one of the locales."""
    if text.lower() not in LOCALES:
        message = f"not one of {', '.join(LOCALES)}"
        raise ValueError(message)
    return text.lower()


def read_contact_id(text: str) -> UUID:
    """Return the UUID; Dynamics writes capitals and braces."""
    match = _UUID.fullmatch(text)
    if match is None or not UUID(match[1]).int:
        message = "not a contact ID (a UUID)"
        raise ValueError(message)
    return UUID(match[1])


def read_organisation(text: str, *, ids: Mapping[str, UUID]) -> UUID:
    """Return the id of the organisation with this slug."""
    if text.lower() not in ids:
        message = "no such organisation; create it with `certjob organisation set`"
        raise ValueError(message)
    return ids[text.lower()]
