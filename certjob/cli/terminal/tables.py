"""Tables for a terminal: numbers, dates and ids stay whole, other texts are wrapped or cut, one column stays free."""

import re
from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

_GAP: Final = 2
"""Columns between two cells."""
_LONGEST_WORD: Final = 24
"""A longer word may be broken or cut; no text is narrowed below the others before that."""
_NARROWEST: Final = 3
_PARTS: Final = re.compile(r"\s+|(?<=[^\W\d_]-)(?=[^\W\d_])")
"""Between words, and after a hyphen between letters, as in a double name."""


def lay_out(headings: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, header: bool = True) -> Table:
    """Return a table of at most ``width - 1`` columns: a terminal would wrap a line that fills it.

    A heading that begins with ``>`` is above numbers and one with ``=`` above dates or ids: these are never broken.
    """
    names = [heading.lstrip(">=") for heading in headings]
    columns = list(zip(names, *rows, strict=True))
    widths = _widths(columns, whole=[heading[:1] in (">", "=") for heading in headings], width=width - 1)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), show_header=header)
    for heading, name, fitted in zip(headings, names, widths, strict=True):
        justify = "right" if heading.startswith(">") else "left"
        table.add_column(Text(name), width=fitted, justify=justify, overflow="ellipsis")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(_broken_at_hyphens(cell, fitted)) for cell, fitted in zip(row, widths, strict=True)))
    return table


def _widths(columns: Sequence[Sequence[str]], *, whole: Sequence[bool], width: int) -> list[int]:
    """Narrow the columns to the width: first to their longest words, then by cutting the longest of these."""
    widths = [max(map(cell_len, cells)) for cells in columns]
    words = [max(cell_len(word) for cell in cells for word in _PARTS.split(cell)) for cells in columns]
    too_wide = sum(widths) + _GAP * (len(widths) - 1) - width
    for narrowest in ([min(word, _LONGEST_WORD) for word in words], [_NARROWEST] * len(words)):
        spare = [
            0 if is_whole and fitted <= _LONGEST_WORD else max(fitted - least, 0)
            for is_whole, fitted, least in zip(whole, widths, narrowest, strict=True)
        ]
        while too_wide > 0 and any(spare):
            at = spare.index(max(spare))
            spare[at], widths[at], too_wide = spare[at] - 1, widths[at] - 1, too_wide - 1
    return widths


def _broken_at_hyphens(cell: str, width: int) -> str:
    """Let a line end after a hyphen of a name that is longer than the column; Rich knows spaces alone."""
    return " ".join(_PARTS.sub("\n", word) if cell_len(word) > width else word for word in cell.split(" "))
