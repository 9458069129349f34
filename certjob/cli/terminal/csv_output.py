"""Tables for spreadsheets: CSV as in RFC 4180, in UTF-8, in which no cell is taken for a formula."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from certjob.redaction import harmless

_SIGN: Final = "[=+\\-@＝＋－＠]"
"""What begins a formula; the wide ones in the spreadsheets of East Asia."""

_BEFORE_A_FORMULA: Final = re.compile(rf'(?:^|[,;|])(?=["\s]*{_SIGN})|\s(?="*{_SIGN}\S)')
"""Where a formula can begin: in the cell, and in what a spreadsheet makes of it that splits at other signs than ours.

Such a spreadsheet may take quotes in the cell for its own. One that splits at spaces also ends the formula at the next
space, so that a sign alone (``Kari - Ola``) computes nothing. Tabs and line ends do not come this far.
"""


def print_csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a header and rows as they come; texts are made safe, numbers and dates stay what they are."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a spreadsheet expects UTF-8, whatever the terminal shows
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([spreadsheet_text(value) if isinstance(value, str) else value for value in row])


def spreadsheet_text(text: str) -> str:
    """Return a text as one harmless line that no spreadsheet computes: what begins like a formula gets an apostrophe.

    >>> spreadsheet_text("=HYPERLINK(1)"), spreadsheet_text("Kari"), spreadsheet_text("Ola;=1+1")
    ("'=HYPERLINK(1)", 'Kari', "Ola;'=1+1")
    """
    return _BEFORE_A_FORMULA.sub(r"\g<0>'", harmless(text))
