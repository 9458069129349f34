"""`certjob changes`: who was changed since a moment, by name, and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, tzinfo
from typing import Any, Final
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.explanations import day_words, threshold_words
from certjob.domain.models import NOT_CERTIFIED, OWN_PAUSE_REASON

WORDS: Final = {
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedChange:
    """One change. docs/json.md describes the fields."""

    at: datetime
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


def find_beginning(connection: Connection, *, since: date | None, today: date, zone: tzinfo) -> datetime:
    """Return the beginning of a day or, without one, of the first full run of the newest date; otherwise of today."""
    first: datetime | None = None
    if since is None:
        first = database.fetch_value(connection, "find_first_run_of_last_night", {"today": today})
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
    asked = {"since": since, "zone": zone, "organisation_id": organisation_id, "most": most, "order": list(WORDS)}
    for row in database.stream(connection, "read_changes", asked, into=dict):
        yield ListedChange(
            why=_why(row, today=today),
            **{name: row[name] for name in ListedChange.__slots__ if name in row},
        )


def _why(row: dict[str, Any], *, today: date) -> str:
    """Return the reason of a change."""
    match row["what"]:
        case "expired" | "revoked" | "renewed" | "reminder_sent":
            return _of_a_certificate(row, today=today)
        case "pause_lifted" if row["person"] != "certjob":
            return f"{_pause(row, today=today)}, lifted by {row['person'] or 'no one known'}"
        case "paused":
            return _pause(row, today=today)
        case "hidden":
            return _hide(row, today=today)
        case "corrected":
            return _correction(row, today=today)
        case "unknown_contact":
            return f"contact {row['reason']} is visible"
        case "moved":
            return f"{_certified(row, today=today)}, before {_day(row['former_day'], today)}"
    return _certified(row, today=today)


def _of_a_certificate(row: dict[str, Any], *, today: date) -> str:
    """Return the certificate of a change of status or of a reminder, and its day."""
    kind, day = row["kind"] or "a deleted certificate", _day(row["day"], today)
    match row["what"]:
        case "renewed":
            return f"{kind} is valid until {day}" if day else kind
        case "reminder_sent":
            return f"{threshold_words(row['threshold_days'])} {day}, the last day of {kind}"
    verb = "was revoked" if row["what"] == "revoked" else "ended"
    return f"{kind} {verb}{day and f' on {day}'}"


def _correction(row: dict[str, Any], *, today: date) -> str:
    """Return what the portal showed, and what it shows now."""
    if row["reason"] == "last_day":
        return f"visible until a wrong day on the portal, {_certified(row, today=today)}"
    if row["reason"] == "visible":
        return "edited by hand on the portal, shown again"
    return f"edited by hand on the portal, hidden again: {_hide(row, today=today)}"


def _certified(row: dict[str, Any], *, today: date) -> str:
    day = row["certified_until"]
    return f"certified until {_day(day, today)}" if day not in (None, NOT_CERTIFIED) else "no longer certified"


def _pause(row: dict[str, Any], *, today: date) -> str:
    """Return the reason of a pause: the certificate that lapsed, or the person and what they wrote."""
    if row["reason"] != OWN_PAUSE_REASON:
        return f"pause by {row['person']}: {row['reason']}" if row["what"] != "pause_lifted" else str(row["reason"])
    if row["kind"] is None:
        return "no valid certificate"
    verb = "was revoked" if row["is_revoked"] else "ended"
    return f"{row['kind']} {verb} on {_day(row['day'], today)}"


def _hide(row: dict[str, Any], *, today: date) -> str:
    if row["has_left"]:
        return "has left"
    return _pause(row, today=today) if row["reason"] else "not certified"


def _day(day: date | None, today: date) -> str:
    return day_words(day, today) if day is not None else ""
