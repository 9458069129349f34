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

from certjob.cli.terminal.plain import GLUE, harmless

_MONTHS: Final = "|".join(f"{date(2000, month, 1):%B}" for month in range(1, 13))
_TOGETHER: Final = re.compile(
    rf"`[^`]*`|\b(?:today|\d{{1,2}} (?:{_MONTHS})(?: \d{{4}})?)(?: \d\d:\d\d)?\b|\b[\d,]+ (?:day|hour|minute)s?\b"
)


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


def _kept_together(text: str) -> str:
    """Return harmless text in which no line ends inside a command, a date or a duration."""
    return _TOGETHER.sub(lambda match: match[0].replace(" ", GLUE), harmless(text))


def wrap(console: Console, lines: Iterable[PageLine]) -> Iterator[Text]:
    """Yield the lines of a terminal, each no wider than it; what belongs together stays under its indent."""
    for line in lines:
        yield from _wrapped(console, line)


def _fitting(word: str, width: int) -> str:
    """What was glued, parted at its spaces again where it is longer than a line."""
    return word.replace(GLUE, " ") if cell_len(word) > width else word


def _wrapped(console: Console, line: PageLine) -> Iterator[Text]:
    margin = " " * line.indent
    width = max(console.width - line.indent - len(line.bullet), 1)
    text = re.sub(r"\S+", lambda word: _fitting(word[0], width), _kept_together(line.text))
    whole = Text.assemble((harmless(line.head), "bold"), text, style=line.style)
    for number, piece in enumerate(whole.wrap(console, width, overflow="fold") or [Text()]):
        piece.plain = piece.plain.replace(GLUE, " ")
        piece.rstrip()
        yield Text(margin + (" " * len(line.bullet) if number else line.bullet)).append_text(piece)


_LONGEST_WORDS: Final = (24, 18, 12, 10)
"""A longer word in a cell may be broken, so that it does not cost the other columns their room: the first that fits."""


def keep_words_whole(console: Console, table: Table) -> None:
    """Share the console's width out among the columns: each first gets room for its longest word, if there is any.

    Left to itself Rich narrows the widest columns first, down to single letters.
    """
    options = console.options.update(max_width=1_000_000)
    texts = [[_text(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    most = [max(map(cell_len, column)) for column in texts]
    words = [
        widest if column.no_wrap else max(cell_len(word) for cell in cells for word in _PARTS.split(cell))
        for column, cells, widest in zip(table.columns, texts, most, strict=True)
    ]
    room = console.width - (Measurement.get(console, options, table).maximum - sum(most))
    for longest in _LONGEST_WORDS:
        least = [min(word, longest) for word in words]
        if sum(least) <= room:
            break
    else:
        return
    spare = room - sum(least)
    needs = sorted((most[at] - least[at], at) for at in range(len(most)))
    for position, (need, at) in enumerate(needs):  # whoever needs little gets it, the others share what is left
        share = min(need, spare // (len(needs) - position))
        column = table.columns[at]
        column.width = width = least[at] + share
        column._cells = [_broken_at_hyphens(cell, width) for cell in column._cells]
        spare -= share


_PARTS: Final = re.compile(r"\s+|(?<=[^\W\d_]-)(?=[^\W\d_])")
"""Between words, and after a hyphen between letters, as in a double name."""


def _text(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _broken_at_hyphens(cell: RenderableType, width: int) -> RenderableType:
    """Let a line end after a hyphen of a name that is longer than the column; Rich knows spaces alone."""
    if isinstance(cell, Text) or not any(cell_len(word) > width for word in _text(cell).split()):
        return cell
    return " ".join(re.sub(_PARTS, "\n", word) if cell_len(word) > width else word for word in str(cell).split(" "))
