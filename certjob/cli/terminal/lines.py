"""The lines of a page on a terminal: wrapped under their indent, commands and dates unbroken."""

import re
from collections.abc import Iterable, Iterator
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
"""Stands for a space at which no line may end; harmless() lets none in from elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLine:
    """A line as wide as it needs to be, before it is wrapped; of whatever text."""

    text: str
    head: str = ""
    """What comes before the text, bold."""
    style: str = ""
    indent: int = 0
    bullet: str = ""
    """Stands before its first line; the others are as far in."""
    bullet_style: str = ""


def _kept_together(text: str) -> str:
    """Return harmless text in which no line ends inside a command, a date or a duration."""
    return _TOGETHER.sub(lambda match: match[0].replace(" ", _GLUE), harmless(text))


def wrap(console: Console, lines: Iterable[PageLine]) -> Iterator[Text]:
    """Yield the lines of a terminal, each shorter than it, because some letters are wider than Rich assumes."""
    for line in lines:
        margin = " " * line.indent
        width = max(console.width - 1 - line.indent - len(line.bullet), 1)
        words = _kept_together(line.text).split(" ")
        text = " ".join(word.replace(_GLUE, " ") if cell_len(word) > width else word for word in words)
        whole = Text.assemble((harmless(line.head), "bold"), text, style=line.style)
        for number, piece in enumerate(whole.wrap(console, width, overflow="fold") or [Text()]):
            piece.plain = piece.plain.replace(_GLUE, " ")
            piece.rstrip()
            bullet = "" if number else line.bullet.rstrip()
            gap = " " * (len(line.bullet) - len(bullet))
            yield Text.assemble(margin, (bullet, line.bullet_style), gap, piece)
