"""The page of `certjob list`: a table on a terminal, otherwise CSV."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from datetime import date
from itertools import islice
from typing import Any, Final

from certjob.cli.documents import left_out
from certjob.cli.terminal.csv_output import print_csv
from certjob.cli.terminal.output import Output
from certjob.database import Connection
from certjob.domain.explanations import number, reason_words
from certjob.domain.models import OWN_PAUSE_REASON
from certjob.redaction import harmless
from certjob.reports.listing import ListedCertificate, Listing
from certjob.sorting import SortedRows

COLUMNS: Final = tuple(each.name for each in fields(ListedCertificate))
"""The columns of the CSV, and the keys of the JSON document."""
MOST_ROWS: Final = 200
"""Rows of a table on a terminal. CSV and JSON have all of them."""


def show_list(output: Output, rows: SortedRows[ListedCertificate]) -> None:
    """Print a table of the first rows on a terminal, otherwise CSV of all of them."""
    if not output.on_terminal:
        print_list_csv(rows)
        return
    if not len(rows):
        output.result("No mentor matches.")
        return
    shown = list(islice(rows, MOST_ROWS))
    slug, *others = {row.organisation for row in shown}
    cells = [
        [row.expires_on, days_left_words(row.days_left), _status(row), row.member_no, row.full_name, row.kind]
        + ([row.organisation] if others else [])
        for row in shown
    ]
    headings = ("=Last day", ">Days", "Status", "=No.", "~Name", "~Kind", *(["~Org"] if others else []))
    output.show_table(headings, cells)
    if len(rows) > MOST_ROWS:
        output.result(f"… and {len(rows) - MOST_ROWS:,} more; --csv prints all of them")
        return
    without = sum(row.status is None for row in shown)
    held = len(shown) - without
    counts = [number(held, "certificate")] if held or not without else []
    counts += [f"{without:,} without a certificate"] if without else []
    output.result(("" if others else f"{slug}: ") + ", ".join(counts))


def days_left_words(days: int | None) -> str:
    """Return the distance of a last day from today, for a column of numbers.

    >>> days_left_words(26392), days_left_words(0), days_left_words(-299)
    ('26,392', 'today', '299 ago')
    """
    if days is None:
        return ""
    return "today" if days == 0 else f"{days:,}" if days > 0 else f"{-days:,} ago"


def print_list_csv(rows: Iterable[ListedCertificate]) -> None:
    """Print all rows as CSV."""
    print_csv(COLUMNS, (map(_cell, asdict(row).values()) for row in rows))


def to_document(connection: Connection, listing: Listing, *, today: date) -> dict[str, Any]:
    """Return the JSON document."""
    return left_out(connection, listing.broken) | {"today": today, "certificates": map(asdict, listing.rows)}


def _status(row: ListedCertificate) -> str:
    """Return the status, and why the mentor is not active."""
    pauses = ("paused" if each == OWN_PAUSE_REASON else f"paused: {reason_words(each)}" for each in row.pauses)
    return harmless(", ".join([str(row.status or "none"), *pauses, *(["has left"] if row.left else [])]))


def _cell(value: object) -> object:
    """Return a value for a spreadsheet: several reasons in one cell, ``yes`` or nothing."""
    match value:
        case tuple():
            return "; ".join(value)
        case bool():
            return "yes" if value else ""
    return value
