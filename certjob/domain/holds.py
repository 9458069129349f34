"""What a guard holds back for an organisation: why, whom it concerns, and the command that lets it through."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

_WHAT_TO_CHECK = {
    "pauses": "the clock and the last import",
    "returns": "the clock and the last import",
    "reminders": "the last import",
    "portal": "DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function",
}


@dataclass(slots=True, kw_only=True)
class Hold:
    """What is held back for an organisation. The numbers are counted when it is written down."""

    organisation_id: UUID
    organisation: str
    """The slug."""
    what: str
    """``pauses``, ``returns``, ``reminders`` or ``portal``."""
    reason: str
    """The guard's words."""
    mentors: int = 0
    """How many would change."""
    ended_by_calendar: int = 0
    """Of them, whose day had come although no fact was changed: these certificates have really ended."""
    facts_changed: int = 0
    """Of them, whose facts were changed since the last review: the import."""
    may_be_shown: int = 0
    """Of them, who are to be hidden, and perhaps still shown on the portal."""
    mentor_ids: Sequence[UUID] = ()
    """Of them, those who may be shown first; at most 50 are stored."""

    @property
    def line(self) -> str:
        """What is held, why, and what to do, in one line."""
        return in_words(self.what, self.organisation, self.reason)


def in_words(what: str, organisation: str, reason: str) -> str:
    """Return what is held, why, and what to do, in one line."""
    return f"{organisation}: {reason}. Check {_WHAT_TO_CHECK[what]}, then `{command(what, organisation)}`"


def command(what: str, organisation: str) -> str:
    """Return the command that lets through what a guard holds."""
    if what == "portal":
        return "certjob reconcile --allow-mass-change"
    return f"certjob run --organisation {organisation} --allow-mass-change"
