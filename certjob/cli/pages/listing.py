"""The list as people and programs read it: a table on a terminal, whole lines off it, CSV, one JSON document."""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from typing import IO, Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from certjob.cli.terminal.csv_output import print_csv
from certjob.cli.terminal.lines import PageLine, keep_words_whole
from certjob.cli.terminal.output import Output, clean
from certjob.cli.terminal.plain import harmless, to_json
from certjob.domain.models import OWN_PAUSE_REASON, Status
from certjob.views.listing import ListedCertificate

COLUMNS: Final = (
    *("organisation", "member_no", "name", "kind", "status"),
    *("issued_on", "expires_on", "days_left", "paused", "left"),
)
MOST_ROWS: Final = 200
"""A table on a terminal has so many rows; everything else has all."""

_STYLES: Final = {
    Status.EXPIRED: "red",
    Status.REVOKED: "red",
    Status.EXPIRING: "yellow",
    Status.RENEWED: "dim",
    Status.UPCOMING: "dim",
}
_KEPT_IN_MEMORY: Final = 1 << 20
"""Bytes of a JSON document; a longer one waits in a temporary file until it is whole."""


def show_list(output: Output, rows: Iterator[ListedCertificate]) -> None:
    """Print a table of the first rows on a terminal, all of them off it: one line each, tabs between its cells."""
    if not output.on_terminal:
        _print_lines("\t".join(_plain(row)) for row in rows)
        return
    shown = list(islice(rows, MOST_ROWS))
    if not shown:
        output.result("No certificate fits.")
        return
    several = len({row.organisation for row in shown}) > 1
    table = _table(shown, several=several)
    if keep_words_whole(output.out, table):
        output.out.print(table)
    else:
        output.show_lines(_page_line(row, several=several) for row in shown)
    if next(rows, None) is None:
        output.result(f"{len(shown):,} {'certificate' if len(shown) == 1 else 'certificates'}")
    else:
        output.result("… and more; narrow it with --status, --within and --organisation, or take all with --csv")


def _table(rows: Iterable[ListedCertificate], *, several: bool) -> Table:
    """The rows under headings; with the organisation where there are several."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, expand=False)
    for heading in ("Last day", "Days left", "Status"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "Days left" else "left")
    for heading in ("Member", "Name", "Kind", *(("Organisation",) if several else ()), "Paused"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        cells = [row.expires_on, row.days_left, row.status, row.member_no, row.full_name or "", row.kind]
        cells += [row.organisation] if several else []
        table.add_row(*map(clean, [*cells, _paused(row)]), style=_STYLES.get(row.status, ""))
    return table


def _page_line(row: ListedCertificate, *, several: bool) -> PageLine:
    """The same for a narrow terminal."""
    name = row.member_no if row.full_name is None else f"{row.full_name} ({row.member_no})"
    who = ", ".join([name, row.kind, *((row.organisation,) if several else ())])
    paused = _paused(row)
    text = harmless(f"{row.expires_on} {row.status}: {who}" + (f"; paused: {paused}" if paused else ""))
    return PageLine(text=text, bullet="- ", style=_STYLES.get(row.status, ""))


def print_list_csv(rows: Iterable[ListedCertificate]) -> None:
    """Print all rows as CSV, as they are read."""
    print_csv(COLUMNS, (_cells(row) for row in rows))


def print_list_json(rows: Iterable[ListedCertificate], *, today: date) -> None:
    """Print one JSON document, once all rows are read: one that breaks off in the middle would be none."""
    with tempfile.SpooledTemporaryFile(max_size=_KEPT_IN_MEMORY, mode="w+", encoding="utf-8", newline="") as spool:
        head = to_json({"outcome": "ok", "today": today, "certificates": []}).removesuffix("]\n}")
        spool.write(head)
        separator = "\n    "
        for row in rows:
            spool.write(separator + to_json(_document(row), indent=None))
            separator = ",\n    "
        spool.write("\n  ]\n}\n" if separator.startswith(",") else "]\n}\n")
        spool.seek(0)
        _copy(spool)


def _copy(spool: IO[str]) -> None:
    while piece := spool.read(1 << 16):
        sys.stdout.write(piece)


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")


def _paused(row: ListedCertificate) -> str:
    """Who pauses the mentor: certjob, or what reason somebody else gave."""
    reasons = ["certjob" if reason == OWN_PAUSE_REASON else reason for reason in row.pauses]
    return ", ".join([*reasons, *(["has left"] if row.left else [])])


def _plain(row: ListedCertificate) -> Iterator[str]:
    return (harmless(cell) for cell in _cells(row))


def _cells(row: ListedCertificate) -> tuple[object, ...]:
    return (
        row.organisation,
        row.member_no,
        row.full_name or "",
        row.kind,
        str(row.status),
        row.issued_on,
        row.expires_on,
        row.days_left,
        "; ".join(row.pauses),
        "yes" if row.left else "",
    )


def _document(row: ListedCertificate) -> dict[str, object]:
    return {
        "organisation": row.organisation,
        "member_no": row.member_no,
        "full_name": row.full_name,
        "kind": row.kind,
        "status": row.status,
        "issued_on": row.issued_on,
        "expires_on": row.expires_on,
        "days_left": row.days_left,
        "pauses": row.pauses,
        "left": row.left,
        "mentor_id": row.mentor_id,
        "certificate_id": row.certificate_id,
    }
