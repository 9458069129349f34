"""`certjob changes`: who was changed since a moment, by name, and why."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import date, datetime, time, tzinfo
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from certjob import database
from certjob.database import Connection
from certjob.domain.explanations import day_words, moment_words, threshold_words
from certjob.domain.models import NOT_CERTIFIED, OWN_PAUSE_REASON
from certjob.page import GAP, Line, Table, heading

WORDS: Final = {
    "exposed": "Wrongly visible",
    "corrected": "Corrected on the portal",
    "unknown_contact": "Contact of no mentor",
    "revoked": "Revoked",
    "expired": "Expired",
    "paused": "Paused",
    "hidden": "Hidden",
    "pause_lifted": "Pause lifted",
    "shown": "Shown",
    "moved": "Last visible day moved",
    "renewed": "Renewed",
    "reminder_sent": "Reminder sent",
}
"""The changes, the most harmful first, and their names."""
ALL: Final = 2**31 - 1
"""More changes than there can be."""
MOST_ROWS: Final = 50
"""Changes of one kind on a terminal."""
_DAYS = ("day", "former_day", "certified_until")
_TIMES = ("failed_since", "failed_until")
_CAUSES = {"held": "the change is held back"}
"""Why someone was exposed, if no push failed."""
_SENTENCES = {
    "exposed": "{hide}{cause}{failed}",
    "corrected hidden": "differed on the portal, hidden again: {hide}",
    "corrected visible": "differed on the portal, shown again",
    "corrected last_day": "visible until a wrong day on the portal, {certified}",
    "unknown_contact": "contact {reason} is visible",
    "revoked": "{kind} was revoked{on_day}",
    "expired": "{kind} ended{on_day}",
    "paused": "{pause}",
    "hidden": "{hide}",
    "pause_lifted": "{reason}, lifted by {person}",
    "shown": "{certified}",
    "moved": "{certified}, formerly until {former_day}",
    "renewed": "{kind}{until_day}",
    "reminder_sent": "{threshold} of {kind}, {day}",
}
"""Why, for each kind of change. certjob lifts its pause because the mentor is certified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedChange:
    """One change. docs/json.md describes the fields."""

    at: datetime
    ended_at: datetime | None
    """When an exposure ended; None: it lasts, or this is another change."""
    organisation: str | None
    """The slug. None, as the four next fields: a contact that belongs to no mentor, or a deleted mentor."""
    member_no: str | None
    full_name: str | None
    mentor_id: UUID | None
    what: str
    """A key of WORDS."""
    why: str
    threshold_days: int | None
    number: int
    """The number of changes of this kind."""

    def to_document(self) -> dict[str, Any]:
        """Return the entry of the JSON document, and the row of the CSV."""
        return {name: value for name, value in asdict(self).items() if name in COLUMNS}


COLUMNS: Final = tuple(each.name for each in fields(ListedChange) if each.name != "number")
_SHOWN = {"at": "At", "ended_at": "Until", "organisation": "Org", "member_no": "No.", "full_name": "Name", "why": "Why"}


def find_beginning(connection: Connection, *, since: date | None, today: date, zone: tzinfo) -> datetime:
    """Return the beginning of a day or, without one, of the first full run of the newest date; otherwise of today."""
    first: datetime | None = None
    if since is None:
        first = database.fetch_value(connection, "find_first_run_of_newest_date", {"today": today})
    return first or datetime.combine(since or today, time(), tzinfo=zone)


def read_changes(
    connection: Connection,
    *,
    since: datetime,
    today: date,
    zone: str,
    organisation_id: UUID | None = None,
    most: int = ALL,
) -> Iterator[ListedChange]:
    """Yield the changes, the most harmful kind first, then by time; at most ``most`` of each kind."""
    asked = {"since": since, "today": today, "zone": zone, "most": most, "order": list(WORDS)}
    asked |= {"organisation_id": organisation_id}
    for row in database.stream(connection, "read_changes", asked, into=dict):
        days = {name: _in_words(row[name], today) for name in _DAYS}
        times = {name: row[name] and moment_words(row[name].astimezone(ZoneInfo(zone)), today) for name in _TIMES}
        yield ListedChange(
            why=_why(row | days | times),
            **{name: row[name] for name in ListedChange.__slots__ if name in row},
        )


def _in_words(day: date | None, today: date) -> str:
    return day_words(day, today) if day not in (None, NOT_CERTIFIED) else ""


def _why(row: dict[str, Any]) -> str:
    """Return the reason of a change, from a row whose days and times are words."""
    what, cause = row["what"], row["cause"]
    if what == "corrected":
        what += f" {row['reason'] if row['reason'] in ('last_day', 'visible') else 'hidden'}"
    if what == "pause_lifted" and row["person"] == "certjob":
        what = "shown"
    words = row | {
        "kind": row["kind"] or "a deleted certificate",
        "on_day": f" on {row['day']}" if row["day"] else "",
        "until_day": f" is valid until {row['day']}" if row["day"] else "",
        "reason": "no valid certificate" if row["reason"] == OWN_PAUSE_REASON else row["reason"],
        "person": row["person"] or "no one known",
        "threshold": threshold_words(row["threshold_days"]) if row["threshold_days"] is not None else "",
        "cause": f"; {_CAUSES.get(cause, cause.replace('_', ' '))}" if cause else "",
        "failed": f" since {row['failed_since']}, last try {row['failed_until']}" if row["failed_since"] else "",
        "certified": f"certified until {row['certified_until']}" if row["certified_until"] else "no longer certified",
        "hide": _why_hidden(row),
        "pause": _why_paused(row),
    }
    return _SENTENCES[what].format_map(words)


def _why_hidden(row: dict[str, Any]) -> str:
    if row["has_left"]:
        return "has left"
    return _why_paused(row) if row["reason"] or row["kind"] else "not certified"


def _why_paused(row: dict[str, Any]) -> str:
    """Return the certificate that lapsed, or a person and the reason that the person gave."""
    if row["reason"] not in (None, OWN_PAUSE_REASON):
        return f"pause by {row['person']}: {row['reason']}"
    if row["kind"] is None:
        return "no valid certificate"
    return f"{row['kind']} {'was revoked' if row['is_revoked'] else 'ended'} on {row['day']}"


def changes_page(
    changes: Iterable[ListedChange], *, since: datetime, today: date, zone: tzinfo
) -> Iterator[Line | Table]:
    """Yield a table for each kind of change, the most harmful first."""
    yield Line(f"Changes since {moment_words(since.astimezone(zone), today)}")
    is_empty = True
    for what, group in groupby(changes, key=attrgetter("what")):
        first, is_empty = next(group), False
        yield from (GAP, heading(f"{WORDS[what]} ({first.number:,})"))
        rows = (each.to_document() for each in chain([first], group))
        yield Table(rows, _SHOWN, keys=COLUMNS, most=MOST_ROWS, count=first.number)
    if is_empty:
        yield from (Line("No mentor was changed."), Table([], _SHOWN, keys=COLUMNS))
