"""Tables for spreadsheets: CSV as in RFC 4180, in UTF-8, in which no cell is taken for a formula."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from certjob.cli.terminal.plain import discard_results, harmless

_BEGINS_A_FORMULA: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""In spreadsheets; the wide ones in those of East Asia. Tabs and line ends, which do too, are not let through."""


def print_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a header and rows as they come; texts are made safe, numbers and dates stay what they are.

    Whoever reads it may go away before its end; then no more rows are asked for.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a spreadsheet expects UTF-8, whatever the terminal shows
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    try:
        writer.writerow(header)
        writer.writerows([_cell(value) for value in row] for row in rows)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_results()


def spreadsheet_text(text: str) -> str:
    """Return a text as one harmless line that no spreadsheet computes: what begins like a formula gets an apostrophe.

    >>> spreadsheet_text("=HYPERLINK(1)"), spreadsheet_text("Kari"), spreadsheet_text("-1")
    ("'=HYPERLINK(1)", 'Kari', "'-1")
    """
    line = harmless(text)
    return f"'{line}" if line.lstrip().startswith(_BEGINS_A_FORMULA) else line


def _cell(value: object) -> object:
    return spreadsheet_text(value) if isinstance(value, str) else value
