"""Remove secrets, addresses and control characters from texts."""

import re
from collections.abc import Iterable

LONGEST_FOREIGN_TEXT = 10_000
"""Characters of a foreign text that are read. Less is printed."""

_IN_AN_ADDRESS = r"[^\s<>@:;,()\"']"
# Only from the first letter of a word, because trying each letter takes quadratic time in a long word without an @.
_ADDRESS = re.compile(rf"<?(?<!{_IN_AN_ADDRESS}){_IN_AN_ADDRESS}+@{_IN_AN_ADDRESS}+>?")

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")
"""Control characters, line separators, and marks that change the direction of the text."""

_SIGN = "[=+\\-@＝＋－＠]"
"""The first characters of formulas, including the wide forms of East Asia."""

_BEFORE_A_FORMULA = re.compile(rf'(?:^|[,;|])(?=["\s]*{_SIGN})|\s(?="*{_SIGN}\S)')
"""The places where a formula can begin: in the cell, and in its parts if a spreadsheet splits it at other characters.

Such a spreadsheet may also remove quotes. If it splits at spaces, a formula ends at the next space, so a sign alone
(``Kari - Ola``) is harmless. ``harmless`` has already removed tabs and line ends.
"""

_PROTECTED = re.compile(rf"""'(?=["'\s]*{_SIGN})""")

_SHORTEST = 4
"""Shorter secrets would match parts of ordinary words."""

_secrets: set[str] = set()


def keep(secrets: Iterable[str | None]) -> None:
    """Replace the secrets that ``without_secrets`` removes."""
    _secrets.clear()
    _secrets.update(secret for secret in secrets if secret and len(secret) >= _SHORTEST)


def without_secrets(text: str) -> str:
    """Return the text with ``<secret>`` for every secret of ``keep``."""
    for secret in sorted(_secrets, key=len, reverse=True):  # one may contain another
        text = text.replace(secret, "<secret>")
    return text


def without_people(text: str) -> str:
    """Return a foreign text, from a server or an unexpected error, without secrets and addresses."""
    return without_addresses(without_secrets(text))


def without_addresses(text: str) -> str:
    """Return the beginning of a foreign text, with ``<address>`` for addresses."""
    return _ADDRESS.sub("<address>", _beginning(text))


def _beginning(text: str) -> str:
    """Return the part that is read, without its last word, because half an address would not be recognized."""
    if len(text) <= LONGEST_FOREIGN_TEXT:
        return text
    end = LONGEST_FOREIGN_TEXT
    while end and (text[end - 1] == "@" or re.match(_IN_AN_ADDRESS, text[end - 1])):
        end -= 1
    return text[:end] + "…"


def foreign_line(text: str, *, secrets: Iterable[str] = (), longest: int = 300) -> str:
    """Return a foreign text for a log: one line of limited length, without these secrets and without addresses."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "<secret>")
    text = "".join(character if character.isprintable() else " " for character in without_addresses(text))
    shown = " ".join(text.split())
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def harmless(text: object) -> str:
    """Return any text as one line without control characters and invisible characters."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in str(text)
    )


def printed_line(text: str) -> str:
    """Return a person's text as it is printed, also without spaces that are not needed."""
    return " ".join(harmless(text).split())


def spreadsheet_text(text: str) -> str:
    """Return the text as one line, with an apostrophe before each part that could be a formula.

    >>> spreadsheet_text("=HYPERLINK(1)"), spreadsheet_text("Kari"), spreadsheet_text("Ola;=1+1")
    ("'=HYPERLINK(1)", 'Kari', "Ola;'=1+1")
    """
    return _BEFORE_A_FORMULA.sub(r"\g<0>'", harmless(text))


def from_spreadsheet(text: str) -> str:
    """Return the text whose ``spreadsheet_text`` this is, or else the text itself.

    >>> from_spreadsheet("'=HYPERLINK(1)"), from_spreadsheet("'Kari"), from_spreadsheet("Ola;'=1+1")
    ('=HYPERLINK(1)', "'Kari", 'Ola;=1+1')
    """
    bare = _PROTECTED.sub("", text) if "'" in text else text
    return bare if spreadsheet_text(bare) == text else text


def one_line(text: str | None) -> str:
    """Return the text as one line without characters that could break a header or change its direction."""
    return " ".join(_UNPRINTABLE.sub(" ", text or "").split())
