"""A table on a terminal whose words stay whole; where there is no room for them, the caller says it in lines."""

from collections.abc import Sequence
from itertools import chain
from typing import Final

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_UNLIMITED: Final = 1_000_000
_LONGEST_WORD: Final = 24
"""A longer one in a cell, as nobody's name is, may be broken, so that it does not cost everybody the table."""


def keep_words_whole(console: Console, table: Table) -> bool:
    """Deal the console's width out among the columns; return whether each has room for its longest word.

    Left to itself Rich narrows the widest columns first, down to single letters.
    """
    options = console.options.update(max_width=_UNLIMITED)
    least, most = [], []
    for column in table.columns:
        heading = Measurement.get(console, options, column.header)
        cells = [Measurement.get(console, options, cell) for cell in column.cells]
        most.append(max(cell.maximum for cell in chain((heading,), cells)))
        words = max((min(cell.minimum, _LONGEST_WORD) for cell in cells), default=0)
        least.append(most[-1] if column.no_wrap else max(heading.minimum, words))
    frame = Measurement.get(console, options, table).maximum - sum(most)
    room = console.width - frame
    if sum(least) > room:
        return False
    for column, width in zip(table.columns, _shares(least, most, room=room), strict=True):
        column.width = width
    return True


def _shares(least: Sequence[int], most: Sequence[int], *, room: int) -> list[int]:
    """Return widths between least and most: whoever needs little gets it, the others share what is left.

    >>> _shares([4, 4, 4], [4, 8, 50], room=30), _shares([4, 4], [6, 8], room=80)
    ([4, 8, 18], [6, 8])
    """
    widths = list(least)
    spare = room - sum(least)
    needs = sorted((longest - width, number) for number, (width, longest) in enumerate(zip(least, most, strict=True)))
    for position, (need, number) in enumerate(needs):
        share = min(need, spare // (len(needs) - position))
        widths[number] += share
        spare -= share
    return widths
