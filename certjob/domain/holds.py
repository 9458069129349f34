"""The changes that a guard holds for an organisation, and the command that permits them."""

from dataclasses import dataclass
from uuid import UUID

_CHECK_IMPORT = "the last import (`certjob run --dry-run` lists the mentors)"
_WHAT_TO_CHECK = {
    "pauses": f"the clock and {_CHECK_IMPORT}",
    "returns": f"the clock and {_CHECK_IMPORT}",
    "reminders": _CHECK_IMPORT,
    "portal": "DYNAMICS_VISIBILITY_FIELD and DYNAMICS_URL of the function",
}


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
