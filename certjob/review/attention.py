"""Count the alerts. The database's function ``current_alerts`` returns them for runs, reports and digests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import holds


class Kind(StrEnum):
    """The kinds of alerts, in the order of harm."""

    NO_FULL_RUN = "no_full_run"
    HELD = "held"
    NEVER_REVIEWED = "never_reviewed"
    MAY_BE_VISIBLE = "may_be_visible"
    UNKNOWN_CONTACTS = "unknown_contacts"
    PORTAL_NOT_READ = "portal_not_read"
    MAY_BE_HIDDEN = "may_be_hidden"
    FAILED_REMINDERS = "failed_reminders"
    FAILED_DIGESTS = "failed_digests"
    WAITING_REMINDERS = "waiting_reminders"
    WAITING_DIGESTS = "waiting_digests"


_WORDS: Mapping[Kind, tuple[str, str]] = {
    Kind.NO_FULL_RUN: ("full run is overdue", "full runs are overdue"),
    Kind.HELD: ("organisation is held", "organisations are held"),
    Kind.NEVER_REVIEWED: ("mentor could not be reviewed", "mentors could not be reviewed"),
    Kind.MAY_BE_VISIBLE: ("mentor may still be visible on the portal", "mentors may still be visible on the portal"),
    Kind.UNKNOWN_CONTACTS: (
        "contact on the portal does not belong to any mentor",
        "contacts on the portal do not belong to any mentor",
    ),
    Kind.PORTAL_NOT_READ: ("portal was not read for three days", "portals were not read for three days"),
    Kind.MAY_BE_HIDDEN: ("mentor may still be hidden on the portal", "mentors may still be hidden on the portal"),
    Kind.FAILED_REMINDERS: ("reminder was not delivered", "reminders were not delivered"),
    Kind.FAILED_DIGESTS: ("digest was not delivered", "digests were not delivered"),
    Kind.WAITING_REMINDERS: ("reminder has waited for more than a day", "reminders have waited for more than a day"),
    Kind.WAITING_DIGESTS: ("digest has waited for more than a day", "digests have waited for more than a day"),
}
"""The words after a number, singular and plural."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The number of alerts of one kind."""

    number: int = 0
    new: int = 0
    """Alerts since the given time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The numbers of alerts at one time, and the lines that a run prints about some of them."""

    counts: Mapping[Kind, Count]
    """Every kind, in the order of harm."""
    read_at: datetime
    """The time of the database's clock."""
    acknowledged: int = 0
    """Acknowledged alerts. The other numbers are without them."""
    held: Sequence[str] = ()
    """A line for each hold of a guard in any run."""
    known_mentors: frozenset[UUID] = frozenset()
    """Mentors without a review whose alert is acknowledged."""
    overdue: str = ""
    """The line about an overdue full run; empty if a full run has finished within 26 hours."""

    @property
    def numbers(self) -> dict[str, int]:
        """Return the number of alerts by kind."""
        return {str(kind): count.number for kind, count in self.counts.items()}

    def lines(self, *, only_new: bool = False) -> dict[Kind, str]:
        """Return one line for each kind that has alerts, or with ``only_new`` new alerts."""
        lines = {
            kind: f"{in_words(kind, count.number)}{_how_many_new(count) if only_new else ''}; see `certjob alerts`"
            for kind, count in self.counts.items()
            if (count.new if only_new else count.number)
        }
        return lines | ({Kind.NO_FULL_RUN: self.overdue} if Kind.NO_FULL_RUN in lines else {})


def summarize(numbers: Mapping[str, int]) -> str:
    """Return the numbers of all kinds in one line; empty if there are no alerts."""
    return ", ".join(in_words(Kind(kind), number) for kind, number in numbers.items() if number)


def in_words(kind: Kind, number: int) -> str:
    """Return the number of alerts of a kind in words."""
    singular, plural = _WORDS[kind]
    return f"{number:,} {singular if number == 1 else plural}"


def _how_many_new(count: Count) -> str:
    return f" ({count.new:,} new)" if count.new < count.number else ""


def read_attention(connection: Connection, *, today: date, new_since: datetime | None = None) -> Attention:
    """Count the alerts, and those that are new since a time (None: all of them)."""
    read_at = database.clock(connection)
    rows = database.fetch(connection, "count_attention", {"today": today, "new_since": new_since or "-infinity"})
    found = {Kind(kind): Count(number=number, new=new) for kind, number, new, _ in rows}
    single = database.fetch(connection, "read_single_alerts", {"today": today})
    return Attention(
        counts={kind: found.get(kind, Count()) for kind in Kind},
        read_at=read_at,
        acknowledged=sum(acknowledged for *_, acknowledged in rows),
        held=[
            holds.in_words(what, organisation, error, allow=number)
            for kind, organisation, what, error, number, _ in single
            if kind == "held"
        ],
        known_mentors=frozenset(mentor_id for kind, *_, mentor_id in single if kind == "never_reviewed"),
        overdue="".join(
            f"{error}; run `certjob run`, then check cron" for kind, *_, error, _, _ in single if kind == "no_full_run"
        ),
    )
