"""The lines of a page on a terminal: wrapped under their indent, without breaks in commands and dates."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from certjob.redaction import harmless

_MONTHS: Final = "|".join(f"{date(2000, month, 1):%B}" for month in range(1, 13))
_TOGETHER: Final = re.compile(
    rf"`[^`]*`|\b(?:today|\d{{1,2}} (?:{_MONTHS})(?: \d{{4}})?)(?: \d\d:\d\d)?\b|\b[\d,]+ (?:day|hour|minute)s?\b"
)
_GLUE: Final = "\ue000"
"""Replaces a space that must not end a line. ``harmless`` removes it from other texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLine:
    """A line before it is wrapped."""

    text: str
    head: str = ""
    """Bold text before ``text``."""
    style: str = ""
    indent: int = 0
    bullet: str = ""
    """Text before the first line. The next lines are indented by its width."""
    bullet_style: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagePart:
    """A part of a page: its lines on a terminal, and its lines for programs and logs."""

    lines: Sequence[PageLine] = ()
    plain: Sequence[str] = ()


def wrap(console: Console, lines: Iterable[PageLine]) -> Iterator[Text]:
    """Yield the lines of a terminal, one column narrower, because some letters are wider than Rich assumes."""
    for line in lines:
        width = max(console.width - 1 - line.indent - len(line.bullet), 1)
        words = _TOGETHER.sub(lambda match: match[0].replace(" ", _GLUE), harmless(line.text)).split(" ")
        text = " ".join(word.replace(_GLUE, " ") if cell_len(word) > width else word for word in words)
        whole = Text.assemble((harmless(line.head), "bold"), text, style=line.style)
        for number, piece in enumerate(whole.wrap(console, width, overflow="fold") or [Text()]):
            piece.plain = piece.plain.replace(_GLUE, " ")
            piece.rstrip()
            bullet = "" if number else line.bullet.rstrip()
            gap = " " * (len(line.bullet) - len(bullet))
            yield Text.assemble(" " * line.indent, (bullet, line.bullet_style), gap, piece)
