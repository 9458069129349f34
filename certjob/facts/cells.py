"""The cells of a roster: from a text that somebody typed to a value of ours, or a reason why not.

Every function takes a trimmed text that is not empty and raises ValueError with the reason. A reason goes into logs, so
it never repeats what may be somebody's name or address.
"""

import contextlib
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from uuid import UUID

from certjob.facts.organisations import LOCALES, is_address, is_slug

DEFAULT_DATE_FORMATS = ("%Y-%m-%d", "%d.%m.%Y")

KEY_LIMIT = 100
"""Characters in a member number or a kind."""

NAME_LIMIT = 200

_DATE_LIMIT = 64
_SHOWN_LIMIT = 40
_AS_WRITTEN = {"%Y-%m-%d": "YYYY-MM-DD", "%d.%m.%Y": "DD.MM.YYYY"}
# strptime takes more than these; the two default forms are read to the letter.
_TO_THE_LETTER = {
    "%Y-%m-%d": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "%d.%m.%Y": re.compile(r"[0-9]{1,2}\.[0-9]{1,2}\.[0-9]{4}"),
}
_UUID = re.compile(r"\{?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\}?", re.IGNORECASE)
# Control characters, zero-width spaces and the characters that turn the direction of the text around them.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb]")
_SPACES = re.compile(r"[ \t\r\n]+")


def is_date_format(form: str) -> bool:
    """Whether dates can be read by this strptime form: it names day, month and year."""
    example = date(2021, 11, 25)
    with warnings.catch_warnings(), contextlib.suppress(ValueError):
        warnings.simplefilter("ignore")  # newer Pythons warn of a day and a month without a year
        return datetime.strptime(example.strftime(form), form).replace(tzinfo=UTC).date() == example
    return False


def read_date(text: str, *, formats: Sequence[str]) -> str:
    """Return the ISO form of a date; the first form that fits counts."""
    for form in formats if len(text) <= _DATE_LIMIT else ():
        if form not in _TO_THE_LETTER or _TO_THE_LETTER[form].fullmatch(text):
            try:
                return datetime.strptime(text, form).replace(tzinfo=UTC).date().isoformat()
            except ValueError:
                continue
    message = f"not a date of the form {' or '.join(_AS_WRITTEN.get(form, form) for form in formats)}"
    raise ValueError(message)


def read_text(text: str, *, limit: int) -> str:
    """Return the text in composed letters, without anything unseen in it."""
    if len(text) > limit:
        message = f"longer than {limit} characters"
        raise ValueError(message)
    if text.isascii() and text.isprintable():
        return text
    composed = unicodedata.normalize("NFC", text)  # the same letters are the same bytes, whoever wrote them
    if _UNSEEN.search(composed):
        message = "has a control character or an invisible one"
        raise ValueError(message)
    return composed


def read_key(text: str) -> str:
    """Return a member number or a kind; spaces inside count once, or `Like  person` would be another kind."""
    return read_text(re.sub(" {2,}", " ", text), limit=KEY_LIMIT)


def read_name(text: str) -> str:
    """Return a name on one line."""
    return read_text(_SPACES.sub(" ", text), limit=NAME_LIMIT)


def read_email(text: str) -> str:
    """Return an e-mail address."""
    if not is_address(text):
        message = "not a valid e-mail address"
        raise ValueError(message)
    return text


def read_locale(text: str) -> str:
    """Return one of our locales."""
    if text.lower() not in LOCALES:
        message = f"not a language of ours ({', '.join(LOCALES)})"
        raise ValueError(message)
    return text.lower()


def read_contact_id(text: str) -> str:
    """Return a UUID in its usual form; Dynamics writes capitals and braces."""
    match = _UUID.fullmatch(text)
    if match is None or not UUID(match[1]).int:
        message = "not a contact ID (a UUID)"
        raise ValueError(message)
    return str(UUID(match[1]))


def read_organisation(text: str, *, ids: Mapping[str, str]) -> str:
    """Return the id of the organisation with this slug."""
    slug = text.lower()
    if slug in ids:
        return ids[slug]
    # In a shifted row this is anything; what could be a name is not repeated.
    message = (
        f"{slug} does not exist; create it with `certjob organisation set {slug}`"
        if is_slug(slug)
        else "not an organisation's slug, such as hlf"
    )
    raise ValueError(message)


def shown(text: str) -> str:
    """Return a text from a file, short and harmless enough for a message."""
    short = text if len(text) <= _SHOWN_LIMIT else text[:_SHOWN_LIMIT] + "…"
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in short)


def shown_date(text: str) -> str:
    """Return what stands where a date should be, or nothing: in a shifted row it is somebody's name."""
    return shown(text) if any(letter.isdigit() for letter in text) and "@" not in text else ""
