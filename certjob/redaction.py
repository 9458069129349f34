"""What must not be printed, whoever wrote the text: the secrets of this process's settings, and people's addresses."""

import re
from collections.abc import Iterable

ADDRESS = re.compile(r"<?[^\s<>@:;,()\"']+@[^\s<>@:;,()\"']+>?")

_SHORTEST = 4
"""Shorter ones would be found in every second word."""

_secrets: set[str] = set()


def keep(secrets: Iterable[str | None]) -> None:
    """Let no text that passes ``without_secrets`` hold these from now on; those of earlier settings are forgotten."""
    _secrets.clear()
    _secrets.update(secret for secret in secrets if secret and len(secret) >= _SHORTEST)


def without_secrets(text: str) -> str:
    """Return the text with ``<secret>`` in place of every secret that is kept."""
    for secret in sorted(_secrets, key=len, reverse=True):  # one may be a part of another
        text = text.replace(secret, "<secret>")
    return text


def without_people(text: str) -> str:
    """Return the text of somebody else, a server or a bug, without secrets and with ``<address>`` for addresses."""
    return ADDRESS.sub("<address>", without_secrets(text))
