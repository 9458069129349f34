"""CSV for spreadsheets (RFC 4180, UTF-8). No cell is computed as a formula."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from certjob.redaction import harmless

_SIGN: Final = "[=+\\-@＝＋－＠]"
"""The first characters of formulas, including the wide forms of East Asia."""

_BEFORE_A_FORMULA: Final = re.compile(rf'(?:^|[,;|])(?=["\s]*{_SIGN})|\s(?="*{_SIGN}\S)')
"""The places where a formula can begin: in the cell, and in its parts if a spreadsheet splits it at other characters.

Such a spreadsheet may also remove quotes. If it splits at spaces, a formula ends at the next space, so a sign alone
(``Kari - Ola``) is harmless. ``harmless`` has already removed tabs and line ends.
"""


def print_csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a header and rows. Texts become harmless; numbers and dates are not changed."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # spreadsheets expect UTF-8
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([spreadsheet_text(value) if isinstance(value, str) else value for value in row])


def spreadsheet_text(text: str) -> str:
    """Return the text as one line, with an apostrophe before each part that could be a formula.

    >>> spreadsheet_text("=HYPERLINK(1)"), spreadsheet_text("Kari"), spreadsheet_text("Ola;=1+1")
    ("'=HYPERLINK(1)", 'Kari', "Ola;'=1+1")
    """
    return _BEFORE_A_FORMULA.sub(r"\g<0>'", harmless(text))
