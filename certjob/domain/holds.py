"""The guards' rule, the changes that they hold for an organisation, and the command that permits them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from certjob.domain import rules
from certjob.domain.explanations import number
from certjob.domain.models import Change, Effect

MENTORS = "mentors"
"""Mentors with a surprising change, each counted once. Reminders do not count."""
REMINDED = "reminded"
"""Mentors with any new reminder."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The most changes of a kind that are not held: the larger of a number and a share, at most ``most``."""

    minimum: int
    certified_per_change: int | None = None
    most: int | None = None

    def of(self, certified: int) -> int:
        """Return the number for an organisation with so many certified mentors."""
        share = certified // self.certified_per_change if self.certified_per_change else 0
        limit = max(self.minimum, share)
        return limit if self.most is None else min(limit, self.most)


LIMITS: Final[Mapping[Change, Limit]] = {
    Change.REMOVAL: Limit(10, 10, 50),
    Change.REMINDER: Limit(10, 10, 50),
    Change.CONTACT: Limit(20, 5, 50),
    Change.COURSE: Limit(40, 50),
    Change.RETURN: Limit(10),
    Change.DEPARTURE: Limit(20, 10),
    Change.REINSTATEMENT: Limit(20, 10),
    Change.AFTER_GAP: Limit(20, 10),
}
"""The owner's table: per organisation and 20 hours."""

MOST_SHOWS: Final = 20
"""`certjob reconcile` shows so many mentors although the portal lists none of those who should be visible."""

_WORDS: Final = {
    Change.REMOVAL: "would be paused or hidden",
    Change.REMINDER: "would get a reminder about a new or edited certificate",
    Change.CONTACT: "would be shown or hidden with another contact ID",
    Change.COURSE: "would be shown or reinstated by a new certificate",
    Change.RETURN: "would be shown or reinstated",
    Change.DEPARTURE: "would be hidden because they have left",
    Change.REINSTATEMENT: "are certified and would be shown or reinstated",
    Change.AFTER_GAP: "would change after more than two days without a run",
}
_EARLIER: Final = {
    Effect.ENDS_SOON: f"would end within {rules.SOON_DAYS} days",
    Effect.ENDS_EARLIER: "would end earlier",
}
_CHECK_IMPORT: Final = "the last import (`certjob run --dry-run` lists the mentors)"
_WHAT_TO_CHECK: Final = {
    Change.REMINDER: _CHECK_IMPORT,
    Change.CONTACT: f"the contact IDs of {_CHECK_IMPORT}",
    "portal": "DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What counts beside new changes, by kind and as MENTORS: changes of the last 20 hours, without a permission."""

    counted: Counter[str] = field(default_factory=Counter)
    permitted: Counter[str] = field(default_factory=Counter)
    """Changes that this run has made with a permission."""


def held_kinds(
    counts: Counter[str], *, past: Past, certified: int, allow: int, is_after_gap: bool = False
) -> dict[Change, str]:
    """Return the kinds of changes of one organisation that the guards hold, each with the reason.

    ``counts`` has the surprising changes by kind, by effect, as MENTORS and as REMINDED. A person permits the changes
    of ``allow`` mentors, and reminders to as many. More changes never hold less, so a bound can stand for the counts.
    """
    reasons: dict[Change, str] = {}
    for kind, limit in LIMITS.items():
        earlier, what = past.counted[kind] + past.permitted[kind], kind if kind is Change.REMINDER else MENTORS
        is_above = counts[kind] and earlier + counts[kind] > limit.of(certified)
        if is_above and past.permitted[what] + counts[what] > allow:
            after = f" after {earlier:,} in the last 20 hours" if earlier else ""
            of_certified = f" (of {certified:,} certified)" if limit.certified_per_change else ""
            reasons[kind] = f"{_would(kind, counts)}{after}, the limit is {limit.of(certified):,}{of_certified}"
    if reasons and is_after_gap and counts[REMINDED] and Change.REMINDER not in reasons:
        mentors = number(counts[REMINDED], "mentor")
        reasons[Change.REMINDER] = f"{mentors} would get a reminder while changes after a gap are held back"
    return reasons


def is_permitted(counts: Counter[str], *, past: Past, allow: int) -> bool:
    """Return whether a person permits all these changes and reminders in this run."""
    return all(past.permitted[what] + counts[what] <= allow for what in (MENTORS, Change.REMINDER) if counts[what])


def _would(kind: Change, counts: Counter[str]) -> str:
    """Return the number of mentors and what would happen to them."""
    parts = [(counts[effect], words) for effect, words in _EARLIER.items()] if kind is Change.REMOVAL else []
    parts.insert(0, (counts[kind] - sum(count for count, _ in parts), _WORDS[kind]))
    first, *others = [(count, words) for count, words in parts if count > 0]
    return ", ".join([f"{number(first[0], 'mentor')} {first[1]}", *(f"{count:,} {words}" for count, words in others)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Held changes of one kind in one organisation."""

    organisation_id: UUID
    organisation: str
    """The slug."""
    what: str
    """A kind of changes, or ``portal``."""
    reason: str
    mentors: int
    """The number of held mentors."""
    allow: int
    """The number for ``--allow`` that permits the changes."""
    after_gap: bool = False
    """Whether no run had reviewed the organisation for two days. For later runs, its reviews foresaw nothing, too."""

    @property
    def line(self) -> str:
        """The reason and the next step."""
        return hold_line(self.what, self.organisation, self.reason, allow=self.allow)


def hold_line(what: str, organisation: str, reason: str, *, allow: int) -> str:
    """Return the reason and the next step in one line."""
    check = _WHAT_TO_CHECK.get(what, f"the clock and {_CHECK_IMPORT}")
    return f"{organisation}: {reason}. Check {check}, then `{command(what, organisation, allow=allow)}`"


def command(what: str, organisation: str, *, allow: int) -> str:
    """Return the command that permits held changes."""
    return f"certjob {'reconcile' if what == 'portal' else 'run'} --allow {organisation}={allow}"
