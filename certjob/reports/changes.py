"""`certjob changes`: who was changed since a moment, by name, and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, tzinfo
from typing import Any, Final
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.explanations import day_words, threshold_words
from certjob.domain.models import OWN_PAUSE_REASON

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
class Change:
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
) -> Iterator[Change]:
    """Yield the changes, the most harmful kind first, then by time; at most ``most`` of each kind."""
    asked = {"since": since, "zone": zone, "organisation_id": organisation_id, "most": most, "order": list(WORDS)}
    for row in database.stream(connection, "read_changes", asked, into=dict):
        yield Change(
            why=_why(row, today=today),
            **{name: row[name] for name in Change.__slots__ if name in row},
        )


def _why(row: dict[str, Any], *, today: date) -> str:  # noqa: C901 - one case for each kind of change
    """Return the reason of a change."""
    kind, day = row["kind"] or "a deleted certificate", _day(row["day"], today)
    certified = f"certified until {_day(row['certified_until'], today)}" if row["certified_until"] else ""
    match row["what"]:
        case "expired":
            return f"{kind} ended{day and f' on {day}'}"
        case "revoked":
            return f"{kind} was revoked{day and f' on {day}'}"
        case "renewed":
            return f"{kind} is valid until {day}" if day else kind
        case "reminder_sent":
            return f"{threshold_words(row['threshold_days'])} {day}, the last day of {kind}"
        case "unknown_contact":
            return f"contact {row['reason']} is visible"
        case "pause_lifted" if row["reason"] == OWN_PAUSE_REASON and row["person"] == "certjob":
            return certified
        case "pause_lifted":
            return f"{_pause(row, today=today)}, lifted by {row['person'] or 'no one known'}"
        case "paused":
            return _pause(row, today=today)
        case "hidden":
            return _hide(row, today=today)
        case "corrected" if row["reason"] == "visible":
            moved = row["former_day"] is not None
            return f"edited by hand on the portal, {'with its last day again' if moved else 'shown again'}"
        case "corrected":
            return f"edited by hand on the portal, hidden again: {_hide(row, today=today)}"
        case "moved":
            return f"{certified}, before {_day(row['former_day'], today)}"
    return certified


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
