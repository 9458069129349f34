"""The guards' rule, the changes that they hold for an organisation, and the command that permits them."""

from collections import Counter
from dataclasses import dataclass
from uuid import UUID

from certjob.domain import rules
from certjob.domain.explanations import number
from certjob.domain.models import Change

REMINDERS, PERMITTED = "reminders", "permitted"

_WORDS = {Change.REMOVAL: "paused or hidden", Change.RETURN: "shown or brought back"}

_CHECK_IMPORT = "the last import (`certjob run --dry-run` lists the mentors)"
_WHAT_TO_CHECK = {
    "pauses": f"the clock and {_CHECK_IMPORT}",
    "returns": f"the clock and {_CHECK_IMPORT}",
    "reminders": _CHECK_IMPORT,
    "portal": "DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function",
}


def judge(counts: Counter[str], *, past: Counter[str], certified: int, allow: int) -> dict[str, str]:
    """Return the kinds of changes of one organisation that the guards hold, each with the reason.

    ``counts`` has the surprising changes and the new reminders, by kind. ``past`` has those that count as well: changes
    of the last 20 hours, reminders of this run, and as ``permitted`` the changes that it has made with a permission. A
    person permits ``allow`` changes of both kinds together, or as many reminders.
    """
    reasons: dict[str, str] = {}
    limit = rules.mass_change_limit(certified)
    for change, words in () if is_permitted(counts, past=past, allow=allow) else _WORDS.items():
        if counts[change] and past[change] + counts[change] > limit:
            after = f" after {past[change]:,} in the last 20 hours" if past[change] else ""
            would_be = f"{number(counts[change], 'mentor')} would be {words}{after}"
            reasons[change] = f"{would_be}, the limit is {limit:,} (of {certified:,} certified)"
    reminders, most = past[REMINDERS] + counts[REMINDERS], max(rules.MASS_REMINDER_LIMIT, allow)
    if counts[REMINDERS] and reminders > most:
        reasons[REMINDERS] = f"{reminders:,} new reminders, the limit is {most:,}"
    return reasons


def is_permitted(counts: Counter[str], *, past: Counter[str], allow: int) -> bool:
    """Return whether a person permits all these changes in this run."""
    return past[PERMITTED] + sum(counts[change] for change in Change) <= allow


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Held changes of one kind in one organisation."""

    organisation_id: UUID
    organisation: str
    """The slug."""
    what: str
    """``pauses`` (and hides), ``returns``, ``reminders`` or ``portal``."""
    reason: str
    mentors: int
    """The number of held mentors."""
    allow: int
    """The number for ``--allow`` that permits the changes."""
    after_gap: bool = False
    """Whether no run had reviewed the organisation for a week. Later runs then treat all its changes as surprising."""

    @property
    def line(self) -> str:
        """The reason and the next step."""
        return in_words(self.what, self.organisation, self.reason, allow=self.allow)


def in_words(what: str, organisation: str, reason: str, *, allow: int) -> str:
    """Return the reason and the next step in one line."""
    return f"{organisation}: {reason}. Check {_WHAT_TO_CHECK[what]}, then `{command(what, organisation, allow=allow)}`"


def command(what: str, organisation: str, *, allow: int) -> str:
    """Return the command that permits held changes."""
    return f"certjob {'reconcile' if what == 'portal' else 'run'} --allow {organisation}={allow}"
