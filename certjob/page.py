"""The parts of a page. The command prints them on a terminal, and without colours and wrapping into a pipe."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """A paragraph on a terminal, otherwise one line."""

    text: str
    head: str = ""
    """Bold text before ``text``."""
    indent: str = ""
    """Text before the first line, such as ``  - ``. The next lines are indented by its width."""
    style: str = ""
    """Of the whole line."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows such as those of the JSON document: columns on a terminal, otherwise CSV.

    A terminal leaves out columns without a value, and shows times in the programme's time zone.
    """

    rows: Iterable[Mapping[str, object]]
    shown: Mapping[str, str]
    """The headings by key."""
    keys: Sequence[str] = ()
    """The columns of the CSV; empty: those that are shown."""
    most: int = 50
    """Rows on a terminal."""
    count: int | None = None
    """The number of rows, if they are an iterator."""


Page = Iterable[Line | Table | str]
"""A text is printed as it is."""


def heading(text: str) -> Line:
    """Return a bold line."""
    return Line(text, style="bold")


GAP = Line("")
"""An empty line."""
