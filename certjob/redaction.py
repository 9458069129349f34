"""Removes from texts, whoever wrote them, what must not be shown: secrets, addresses, control characters."""

import re
from collections.abc import Iterable

LONGEST_FOREIGN_TEXT = 10_000
"""Characters of somebody else's text that are looked at; what is shown of one is shorter still."""

_IN_AN_ADDRESS = r"[^\s<>@:;,()\"']"
# From a word's first letter only: tried from each, a long word without an @ takes the square of its length.
_ADDRESS = re.compile(rf"<?(?<!{_IN_AN_ADDRESS}){_IN_AN_ADDRESS}+@{_IN_AN_ADDRESS}+>?")

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]+")
"""Control characters, line separators and marks that turn the direction of what follows."""

_SHORTEST = 4
"""Shorter ones would be found in every second word."""

_secrets: set[str] = set()


def keep(secrets: Iterable[str | None]) -> None:
    """Remember what ``without_secrets`` removes from now on, in place of what was remembered before."""
    _secrets.clear()
    _secrets.update(secret for secret in secrets if secret and len(secret) >= _SHORTEST)


def without_secrets(text: str) -> str:
    """Return the text with ``<secret>`` in place of every secret that is kept."""
    for secret in sorted(_secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, "<secret>")
    return text


def without_people(text: str) -> str:
    """Return the text of somebody else, a server or a bug, without secrets and with ``<address>`` for addresses."""
    return without_addresses(without_secrets(text))


def without_addresses(text: str) -> str:
    """Return the beginning of somebody else's text, with ``<address>`` in place of addresses."""
    return _ADDRESS.sub("<address>", _beginning(text))


def _beginning(text: str) -> str:
    """Return what is looked at, without the word at its end: half an address is not seen to be one."""
    if len(text) <= LONGEST_FOREIGN_TEXT:
        return text
    end = LONGEST_FOREIGN_TEXT
    while end and (text[end - 1] == "@" or re.match(_IN_AN_ADDRESS, text[end - 1])):
        end -= 1
    return text[:end] + "…"


def foreign_line(text: str, *, secrets: Iterable[str] = (), longest: int = 300) -> str:
    """Return somebody else's text fit for a log: one line, not longer, without these secrets, without addresses."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "<secret>")
    text = "".join(character if character.isprintable() else " " for character in without_addresses(text))
    shown = " ".join(text.split())
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def harmless(text: object) -> str:
    """Return any text as one line in which no terminal finds an order: no control, no invisible character."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in str(text)
    )


def one_line(text: str | None) -> str:
    """Return the text in one line without characters that could break a header or turn the text around."""
    return " ".join(_UNPRINTABLE.sub(" ", text or "").split())
