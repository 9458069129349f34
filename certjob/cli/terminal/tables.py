"""Tables for a terminal. Numbers, dates and ids are never broken; texts are wrapped or cut."""

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

_GAP: Final = "  "
_LONGEST_WORD: Final = 24
"""A longer word may be cut, to leave space for other columns."""
_READABLE: Final = 8
_COMFORTABLE: Final = 16
"""Cells of a name before texts are wrapped."""
_NARROWEST: Final = 3
_PARTS: Final = re.compile(r"\s+|(?<=[^\W\d_]-)(?=[^\W\d_])")
"""The places for a line break: between words, and after a hyphen between letters."""

NUMBER: Final = ">"
WHOLE: Final = "="
CUT: Final = "~"


def lay_out(
    console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool = True
) -> Iterator[Text]:
    """Yield the lines of a table, one column narrower than the terminal, because a full line starts a new one.

    The first character of a heading is the kind of its column: ``>`` numbers and ``=`` dates or ids are never broken,
    ``~`` names and slugs are cut to one line, and other texts are wrapped between words.
    """
    names = [heading.lstrip(f"{NUMBER}{WHOLE}{CUT}") for heading in headings]
    kinds = [heading[:1] for heading in headings]
    columns = list(zip(names, *rows, strict=True))
    widths = _widths(columns, kinds, width=console.width - 1)
    for number, cells in enumerate([names, *rows] if header else rows):
        for line in zip_longest(*map(_pieces, [console] * len(cells), cells, kinds, widths), fillvalue=""):
            placed = map(_place, line, kinds, widths)
            yield Text(_GAP.join(placed).rstrip(), style="bold" if header and not number else "")
        if header and not number:
            yield Text("─" * (sum(widths) + len(_GAP) * (len(widths) - 1)))


def _pieces(console: Console, cell: str, kind: str, width: int) -> list[str]:
    """Return the lines of a cell."""
    text = Text(cell if kind in (NUMBER, WHOLE, CUT) else _broken_at_hyphens(cell, width))
    if kind in (NUMBER, WHOLE, CUT):
        text.truncate(width, overflow="ellipsis")
        return [text.plain]
    return [piece.plain for piece in text.wrap(console, width, overflow="ellipsis")]


def _place(piece: str, kind: str, width: int) -> str:
    return " " * (width - cell_len(piece)) + piece if kind == NUMBER else set_cell_size(piece, width)


def _widths(columns: Sequence[Sequence[str]], kinds: Sequence[str], *, width: int) -> list[int]:
    """Return widths that fit: narrow first names and slugs a little, then both these and texts, then both again."""
    widths = [max(map(cell_len, cells)) for cells in columns]
    too_wide = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    words = [max(cell_len(word) for cell in cells for word in _PARTS.split(cell)) for cells in columns]
    names = [_COMFORTABLE if kind == CUT else fitted for kind, fitted in zip(kinds, widths, strict=True)]
    texts = [_READABLE if kind == CUT else min(word, _LONGEST_WORD) for kind, word in zip(kinds, words, strict=True)]
    short = [_NARROWEST if kind == CUT else word for kind, word in zip(kinds, texts, strict=True)]
    for least in (names, texts, short, [_NARROWEST] * len(widths)):
        spare = [
            0 if kind in (NUMBER, WHOLE) and fitted <= _LONGEST_WORD else max(fitted - floor, 0)
            for kind, fitted, floor in zip(kinds, widths, least, strict=True)
        ]
        while too_wide > 0 and any(spare):
            at = spare.index(max(spare))
            spare[at], widths[at], too_wide = spare[at] - 1, widths[at] - 1, too_wide - 1
    return widths


def _broken_at_hyphens(cell: str, width: int) -> str:
    """Allow a break after hyphens in words longer than the column, because Rich breaks lines at spaces only."""
    return " ".join(_PARTS.sub("\n", word) if cell_len(word) > width else word for word in cell.split(" "))
