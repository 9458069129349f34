"""Count the alerts. The database's function ``current_alerts`` returns them for runs, reports and digests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import holds
from certjob.domain.alert_kinds import Kind, count_in_words

QUIET: Final = frozenset({Kind.FAILED_REMINDERS})
"""Kinds that a run reports once a week. certjob cannot deliver these reminders, so they would be news every night."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The number of alerts of one kind."""

    number: int = 0
    new: Sequence[tuple[str, str]] = ()
    """The id and the fingerprint of each alert that no run of this day has printed, or of a QUIET kind of this week."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The numbers of alerts at one time, and the lines that a run prints about some of them."""

    counts: Mapping[Kind, Count]
    """Every kind, in the order of harm."""
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
        """Return one line for each kind that has alerts, or with ``only_new`` and for QUIET kinds new alerts."""
        lines = dict[Kind, str]()
        for kind, count in self.counts.items():
            as_news = only_new or kind in QUIET
            if count.new if as_news else count.number:
                new = _how_many_new(count) if as_news else ""
                lines[kind] = f"{count_in_words(kind, count.number)}{new}; see `certjob alerts`"
        return lines | ({Kind.NO_FULL_RUN: self.overdue} if Kind.NO_FULL_RUN in lines else {})


def _how_many_new(count: Count) -> str:
    return f" ({len(count.new):,} new)" if len(count.new) < count.number else ""


def read_attention(connection: Connection, *, today: date) -> Attention:
    """Count the alerts, and find those that no run of this day has printed."""
    rows = database.fetch(connection, "read_attention", {"today": today}, into=dict)
    found = {Kind(row["kind"]): row for row in rows}
    counts = {kind: Count(number=row["number"], new=list(map(tuple, row["new"]))) for kind, row in found.items()}
    single = {kind: row["single"] for kind, row in found.items()}
    overdue = single.get(Kind.NO_FULL_RUN, ())
    return Attention(
        counts={kind: counts.get(kind, Count()) for kind in Kind},
        acknowledged=sum(row["acknowledged"] for row in rows),
        held=[holds.hold_line(**hold) for hold in single.get(Kind.HELD, ())],
        known_mentors=frozenset(mentor_id for row in rows for mentor_id in row["known_mentors"]),
        overdue="".join(f"{alert['reason']}; run `certjob run`, then check cron" for alert in overdue),
    )
