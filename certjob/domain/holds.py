"""The guards' rule: the surprising changes that they hold for an organisation, and the command that permits them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from certjob.domain.explanations import number
from certjob.domain.models import Change, Effect

LEAST: Final = 20
"""So many mentors with surprising changes are never held,"""
CERTIFIED_PER_CHANGE: Final = 7
"""nor a seventh of the certified mentors,"""
MOST: Final = 50
"""but more than these in any case."""
MOST_RETURNS: Final = 10
"""The limit for returns of mentors who were not certified, without a recent certificate."""
MOST_SHOWS: Final = 20
"""`certjob reconcile` shows so many mentors although the portal lists fewer than half of them."""

CHANGES: Final = "changes"
PORTAL: Final = "portal"
"""The kind of a hold: changes by a review, or shows by `certjob reconcile`."""


def limit(certified: int) -> int:
    """Return the limit of an organisation with so many certified mentors."""
    return min(max(LEAST, certified // CERTIFIED_PER_CHANGE), MOST)


def held_changes(counts: Counter[Change], *, past: Counter[Change], certified: int) -> frozenset[Change]:
    """Return the changes of an organisation that the guards hold.

    ``counts`` has mentors, each once, and ``past`` those of the last 20 hours. More mentors never hold less, so a bound
    can stand for the counts.
    """

    def exceeds(limit: int, *changes: Change) -> bool:
        now = sum(counts[each] for each in changes)
        return now > 0 and now + sum(past[each] for each in changes) > limit

    most, held = limit(certified), set[Change]()
    if exceeds(most, Change.REMOVAL):
        held.add(Change.REMOVAL)
    if exceeds(most, Change.REMOVAL, Change.RETURN, Change.VISIBILITY):
        held |= {Change.RETURN, Change.VISIBILITY}
    if exceeds(MOST_RETURNS, Change.RETURN):
        held.add(Change.RETURN)
    if exceeds(most, Change.REMINDER):
        held.add(Change.REMINDER)
    return frozenset(each for each in held if counts[each])


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """The held mentors of one organisation."""

    organisation_id: UUID
    organisation: str
    """The slug."""
    what: str
    """CHANGES or PORTAL."""
    reason: str
    mentors: int
    """The number for ``--allow`` that permits the changes."""
    changes: frozenset[Change] = frozenset()

    @property
    def line(self) -> str:
        """The reason and the next step."""
        return hold_line(self.what, self.organisation, self.reason, allow=self.mentors)


def hold_reason(effects: Mapping[Effect, int]) -> str:
    """Return the number of held mentors, in all and by effect, as the view ``held_alerts`` does."""
    mentors = sum(effects.values())
    words = ", ".join(f"{effects[each]:,} {each.replace('_', ' ')}" for each in Effect if effects.get(each))
    return f"{number(mentors, 'mentor')} {'is' if mentors == 1 else 'are'} held back ({words})"


def hold_line(what: str, organisation: str, reason: str, *, allow: int) -> str:
    """Return the reason and the next step in one line."""
    check, others = "the clock and the last import (`certjob run --dry-run` lists the mentors)", "; all others proceed"
    if what == PORTAL:
        check, others = "DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function", ""
    return f"{organisation}: {reason}{others}. Check {check}, then `{command(what, organisation, allow=allow)}`"


def command(what: str, organisation: str, *, allow: int) -> str:
    """Return the command that permits held changes."""
    return f"certjob {'reconcile' if what == PORTAL else 'run'} --allow {organisation}={allow}"
