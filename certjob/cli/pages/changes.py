"""The page of `certjob changes`: a table for each kind of change on a terminal, otherwise CSV."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from datetime import date, datetime, tzinfo
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from certjob.cli.terminal.csv_output import print_csv
from certjob.cli.terminal.output import Output
from certjob.domain.explanations import moment_words
from certjob.reports.changes import WORDS, ListedChange

COLUMNS: Final = tuple(each.name for each in fields(ListedChange) if each.name != "number")
"""The columns of the CSV, and the keys of the JSON document."""
MOST_ROWS: Final = 50
"""Changes of one kind on a terminal."""


def show_changes(
    output: Output, changes: Iterable[ListedChange], *, since: datetime, today: date, zone: tzinfo
) -> None:
    """Print a table for each kind of change, the most harmful first."""
    beginning = moment_words(since.astimezone(zone), today)
    output.text(f"Changes since {beginning}")
    is_empty = True
    for what, group in groupby(changes, key=attrgetter("what")):
        shown, is_empty = list(group), False
        others = len({each.organisation for each in shown}) > 1
        rows = [
            [f"{each.at.astimezone(zone):%Y-%m-%d %H:%M}", each.member_no, each.full_name, _why(each, today, zone)]
            + ([each.organisation] if others else [])
            for each in shown
        ]
        slug = "" if others or shown[0].organisation is None else f" in {shown[0].organisation}"
        output.gap()
        headings = ("=At", "=No.", "~Name", "Why", *(["~Org"] if others else []))
        output.show_table(headings, rows, title=f"{WORDS[what]}{slug} ({shown[0].number:,})")
        if shown[0].number > len(shown):
            output.result(f"… and {shown[0].number - len(shown):,} more; --csv prints all of them")
    if is_empty:
        output.result("No mentor was changed.")


def _why(change: ListedChange, today: date, zone: tzinfo) -> str:
    """Return the reason, and for an exposure also its end."""
    if change.what != "exposed":
        return change.why
    until = f"until {moment_words(change.ended_at.astimezone(zone), today)}" if change.ended_at else "lasts"
    return f"{until}: {change.why}"


def print_changes_csv(changes: Iterable[ListedChange]) -> None:
    """Print all changes as CSV."""
    print_csv(COLUMNS, (list(each.values()) for each in to_entries(changes)))


def to_entries(changes: Iterable[ListedChange]) -> Iterator[dict[str, Any]]:
    """Yield the changes for a document."""
    for change in changes:
        entry = asdict(change)
        del entry["number"]
        yield entry
