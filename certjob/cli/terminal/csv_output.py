"""CSV for spreadsheets (RFC 4180, UTF-8). No cell is computed as a formula."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence

from certjob.redaction import spreadsheet_text


def print_csv(header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a header and rows. Texts become harmless; numbers and dates are not changed."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # spreadsheets expect UTF-8
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    writer = csv.writer(sys.stdout, lineterminator="\r\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([spreadsheet_text(value) if isinstance(value, str) else value for value in row])
