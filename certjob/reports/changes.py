"""`certjob changes`: the stored changes of each person since a moment. `certjob explain` says why."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, time, tzinfo
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from certjob import database
from certjob.database import Connection
from certjob.domain.explanations import day_words, moment_words, reason_words, threshold_words
from certjob.page import Line, Table
from certjob.reports.exposure import Exposure

_ORDER: Final = ("exposed", "revoked", "expired", "renewed", "paused", "pause_lifted", "hidden", "shown")
"""The order of changes of the same time."""
COLUMNS: Final = ("organisation", "member_no", "full_name", "mentor_id", "at", "changes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change."""

    at: datetime
    what: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedPerson:
    """The changes of one person, in time order."""

    organisation: str | None
    """The slug. None, as the three next fields: a contact that belongs to no mentor."""
    member_no: str | None
    full_name: str | None
    mentor_id: UUID | None
    changes: Sequence[Change]

    def line(self, *, today: date, zone: tzinfo) -> Line:
        """Return the changes in a sentence, with the day of each change that was not today."""
        words, day = [], today
        for each in self.changes:
            at = each.at.astimezone(zone).date()
            words.append(each.text if at == day else f"{day_words(at, today) if at != today else 'today'}: {each.text}")
            day = at
        head = f"{self.full_name or 'Mentor'} ({self.organisation} {self.member_no}): " if self.mentor_id else ""
        return Line("; ".join(words), head=head)

    def row(self) -> dict[str, Any]:
        """Return the row of the CSV."""
        return asdict(self) | {"at": self.changes[0].at, "changes": [each.text for each in self.changes]}


def find_beginning(connection: Connection, *, since: date | None, today: date, zone: tzinfo) -> datetime:
    """Return the beginning of a day or, without one, of the first full run of the newest date; otherwise of today."""
    first: datetime | None = None
    if since is None:
        first = database.fetch_value(connection, "find_first_run_of_newest_date", {"today": today})
    return first or datetime.combine(since or today, time(), tzinfo=zone)


def read_changes(
    connection: Connection, *, since: datetime, today: date, zone: str, organisation_id: UUID | None = None
) -> Iterator[ChangedPerson]:
    """Yield the persons with a change, in the order of their first change."""
    asked = {"since": since, "today": today, "zone": zone, "order": list(_ORDER), "organisation_id": organisation_id}
    for row in database.stream(connection, "read_changes", asked, into=dict):
        changes = [
            Change(at=datetime.fromisoformat(each["at"]), what=each["what"], text=_text(each, today, ZoneInfo(zone)))
            for each in row["changes"]
        ]
        yield ChangedPerson(**row | {"changes": changes})


def _text(stored: dict[str, Any], today: date, zone: tzinfo) -> str:
    """Return the changes in words."""
    by, kind = stored.get("by"), stored.get("kind") or "a deleted certificate"
    day = day_words(date.fromisoformat(stored["day"]), today) if stored.get("day") else None
    match stored["what"]:
        case "expired":
            return f"{kind} ended{f' on {day}' if day else ''}"
        case "renewed" | "revoked" as status:
            return f"{kind} {status}"
        case "paused":
            return "paused" if by == "certjob" else f"paused by {by}: {reason_words(stored['reason'])}"
        case "pause_lifted":
            return "reinstated" if by == "certjob" else f"pause lifted by {by or 'no one known'}: {stored['reason']}"
        case "hidden":
            return f"hidden{' by reconcile' if by else ''}"
        case "shown":
            return f"shown{f' until {day}' if day else ''}{' by reconcile' if by else ''}"
        case "exposed":
            ended_at = stored["ended_at"] and datetime.fromisoformat(stored["ended_at"]).astimezone(zone)
            return f"wrongly visible {f'until {moment_words(ended_at, today)}' if ended_at else 'until now'}"
        case "reminder_sent":
            return f"reminder {threshold_words(stored['threshold_days'])} ({kind}, {day}) sent"
    return f"contact {stored['contact_id']} is visible and belongs to no mentor"


def changes_page(
    people: Iterable[ChangedPerson], *, since: datetime, today: date, zone: tzinfo, exposure: Exposure, csv: bool
) -> Iterator[Line | Table]:
    """Yield a line for each person and the sum of the exposures, or one table."""
    if csv:
        yield Table((each.row() for each in people), {}, keys=COLUMNS)
        return
    yield Line(f"Changes since {moment_words(since.astimezone(zone), today)}", style="bold")
    lines = (each.line(today=today, zone=zone) for each in people)
    yield next(lines, Line("No mentor was changed."))
    yield from lines
    yield Line(exposure.words, head="exposure: ")
