"""What a guard holds back for an organisation: why, how much, and the command that permits it."""

from dataclasses import dataclass
from uuid import UUID

_WHAT_TO_CHECK = {
    "pauses": "the clock and the last import (`certjob run --dry-run` lists the mentors)",
    "returns": "the clock and the last import (`certjob run --dry-run` lists the mentors)",
    "reminders": "the last import (`certjob run --dry-run` lists the mentors)",
    "portal": "DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Changes of one kind that are held back for an organisation."""

    organisation_id: UUID
    organisation: str
    """The slug."""
    what: str
    """``pauses`` (and hides), ``returns``, ``reminders`` or ``portal``."""
    reason: str
    mentors: int
    """How many mentors are held."""
    allow: int
    """The number that permits them, for ``--allow``."""
    after_gap: bool = False
    """Whether no run had reviewed the organisation for a week. The next runs find all its changes surprising, too."""

    @property
    def line(self) -> str:
        """What is held, why, and what to do, in one line."""
        return in_words(self.what, self.organisation, self.reason, allow=self.allow)


def in_words(what: str, organisation: str, reason: str, *, allow: int) -> str:
    """Return what is held, why, and what to do, in one line."""
    return f"{organisation}: {reason}. Check {_WHAT_TO_CHECK[what]}, then `{command(what, organisation, allow=allow)}`"


def command(what: str, organisation: str, *, allow: int) -> str:
    """Return the command that permits what a guard holds."""
    return f"certjob {'reconcile' if what == 'portal' else 'run'} --allow {organisation}={allow}"
