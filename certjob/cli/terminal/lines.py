"""The lines of a page on a terminal: wrapped under their indent, commands and dates unbroken."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Final

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
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
    """Yield the lines of a terminal, each no wider than it; what belongs together stays under its indent."""
    for line in lines:
        margin = " " * line.indent
        width = max(console.width - line.indent - len(line.bullet), 1)
        words = _kept_together(line.text).split(" ")
        text = " ".join(word.replace(_GLUE, " ") if cell_len(word) > width else word for word in words)
        whole = Text.assemble((harmless(line.head), "bold"), text, style=line.style)
        for number, piece in enumerate(whole.wrap(console, width, overflow="fold") or [Text()]):
            piece.plain = piece.plain.replace(_GLUE, " ")
            piece.rstrip()
            bullet = " " * len(line.bullet) if number else line.bullet
            yield Text.assemble(margin, (bullet, line.bullet_style), piece)


_LONGEST_WORD: Final = 24
"""A longer word in a cell may be broken, so that it does not cost the other columns their room."""


def keep_words_whole(console: Console, table: Table) -> None:
    """Narrow a table to the console, always the column that has most to spare beside its longest word.

    Left to itself Rich narrows the widest columns first, down to single letters; it does so where words do not fit.
    """
    columns = [[_text(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    widths = [max(map(cell_len, cells)) for cells in columns]
    words = [max(cell_len(word) for cell in cells for word in _PARTS.split(cell)) for cells in columns]
    spare = [
        0 if column.no_wrap else width - min(word, _LONGEST_WORD)
        for column, width, word in zip(table.columns, widths, words, strict=True)
    ]
    whole = Measurement.get(console, console.options.update(max_width=1_000_000), table).maximum
    for _ in range(console.width, whole):
        at = spare.index(max(spare))
        if not spare[at]:
            return
        spare[at] -= 1
        widths[at] -= 1
    for column, width in zip(table.columns, widths, strict=True):
        column.width = width
        column._cells = [_broken_at_hyphens(cell, width) for cell in column._cells]


_PARTS: Final = re.compile(r"\s+|(?<=[^\W\d_]-)(?=[^\W\d_])")
"""Between words, and after a hyphen between letters, as in a double name."""


def _text(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _broken_at_hyphens(cell: RenderableType, width: int) -> RenderableType:
    """Let a line end after a hyphen of a name that is longer than the column; Rich knows spaces alone."""
    if isinstance(cell, Text):
        return cell
    return " ".join(_PARTS.sub("\n", word) if cell_len(word) > width else word for word in str(cell).split(" "))
