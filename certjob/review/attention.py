"""Count the alerts. The database's function ``current_alerts`` returns them for runs, reports and digests."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date
from itertools import chain

from certjob import database
from certjob.database import Connection
from certjob.domain import holds
from certjob.domain.alert_kinds import Kind, count_in_words
from certjob.domain.causes import why_pushes_fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The number of alerts of one kind."""

    number: int = 0
    keys: Sequence[Sequence[str]] = ()
    """The keys of each alert. A hold has one for each mentor with the reason."""
    causes: Sequence[str] = ()
    """Of pushes."""

    def news(self, told: Set[str]) -> int:
        """Return the number of alerts with a key that was not told."""
        return sum(any(key not in told for key in keys) for keys in self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The numbers of alerts at one time, and the lines that a run prints about some of them."""

    counts: Mapping[Kind, Count]
    """Every kind, in the order of harm."""
    acknowledged: int = 0
    """Acknowledged alerts. The other numbers are without them."""
    held: Sequence[str] = ()
    """A line for each hold of a guard in any run."""
    overdue: str = ""
    """The line about an overdue full run; empty if a full run has finished within 26 hours."""

    @property
    def numbers(self) -> dict[str, int]:
        """Return the number of alerts by kind."""
        return {str(kind): count.number for kind, count in self.counts.items()}

    def keys(self, *kinds: Kind) -> list[str]:
        """Return the keys of the alerts, of these kinds or of all."""
        return [key for kind in kinds or self.counts for key in chain(*self.counts[kind].keys)]

    def lines(self, told: Set[str]) -> dict[Kind, str]:
        """Return one line for each kind with an alert that was not told."""
        lines = dict[Kind, str]()
        for kind, count in self.counts.items():
            if new := count.news(told):
                only = f" ({new:,} new)" if new < count.number else ""
                what = f"{count_in_words(kind, count.number)}{only}{why_pushes_fail(count.causes)}"
                lines[kind] = f"{what}; see `certjob alerts`"
        return lines | ({Kind.NO_FULL_RUN: self.overdue} if Kind.NO_FULL_RUN in lines else {})


def read_attention(connection: Connection, *, today: date) -> Attention:
    """Count the alerts."""
    rows = database.fetch(connection, "read_attention", {"today": today}, into=dict)
    counts = {Kind(row["kind"]): Count(number=row["number"], keys=row["keys"], causes=row["causes"]) for row in rows}
    single = {Kind(row["kind"]): row["single"] for row in rows}
    overdue = single.get(Kind.NO_FULL_RUN, ())
    return Attention(
        counts={kind: counts.get(kind, Count()) for kind in Kind},
        acknowledged=sum(row["acknowledged"] for row in rows),
        held=[holds.hold_line(**hold) for hold in single.get(Kind.HELD, ())],
        overdue="".join(f"{alert['reason']}; run `certjob run`, then check cron" for alert in overdue),
    )
