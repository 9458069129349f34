"""The plan: the decisions that a run would make, without a write."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any
from uuid import UUID

from certjob import database
from certjob.domain import rules
from certjob.domain.models import NOT_CERTIFIED, Decision, Effect, PauseChange, Reminder, Status
from certjob.facts import reading


def decide_each(read: reading.FactsRead, today: date) -> tuple[list[Decision], dict[UUID, str]]:
    """Return a decision for each mentor, and the reasons by mentor with data that break a rule."""
    decisions: list[Decision] = []
    broken = dict(read.broken)
    for mentor in read.mentors:
        try:
            decisions.append(rules.decide(mentor, today))
        except Exception as error:  # noqa: BLE001 - one broken mentor must not stop the run
            broken[mentor.id] = why_broken(error)
    return decisions, broken


def why_broken(error: Exception) -> str:
    """Return why the rules could not decide about a mentor."""
    return f"no decision: {type(error).__name__}: {error}"


def due_decisions(
    connection: database.Connection, *, today: date, organisation_id: UUID | None, everybody: bool = False
) -> Iterator[tuple[list[Decision], dict[UUID, str]]]:
    """Yield the results of ``decide_each`` for due mentors, or for all, in chunks and without locks.

    A run of all mentors makes them due first, so none is due by the calendar.
    """
    due_by = None if everybody else today
    for read in reading.read_due(connection, due_by=due_by, organisation_id=organisation_id):
        mentors = [replace(each, due_by_calendar=False) for each in read.mentors] if everybody else read.mentors
        yield decide_each(replace(read, mentors=mentors), today)


LOCKED = "still due at the end of the run: locked by another session, or changed since; the next run does this review"


@dataclass(slots=True, kw_only=True)
class ReviewCounts:
    """The results of a run's reviews."""

    reviewed: int = 0
    paused: int = 0
    reinstated: int = 0
    without_certificate: int = 0
    transitions: Counter[Status] = field(default_factory=Counter)
    """Transitions by their new status."""
    held_back: int = 0
    """Mentors with changes that a guard holds back."""
    reminders_queued: int = 0
    reminders_held_back: int = 0
    portal_queued: int = 0
    skipped: list[UUID] = field(default_factory=list)
    """Mentors who were still due at the end."""
    broken: dict[UUID, str] = field(default_factory=dict)
    """Reasons by mentor who could not be reviewed."""

    def add(self, decisions: Sequence[Decision]) -> None:
        """Count reviewed mentors."""
        self.reviewed += len(decisions)
        pauses = [d.pause for d in decisions]
        self.paused += pauses.count(PauseChange.OPEN)
        self.reinstated += pauses.count(PauseChange.LIFT)
        self.without_certificate += sum(d.without_certificate for d in decisions)
        self.portal_queued += sum(d.push for d in decisions)
        self.transitions.update(change.to_status for d in decisions for change in d.transitions)

    @property
    def problems(self) -> list[tuple[UUID, str]]:
        """Skipped and broken mentors, each with the reason."""
        return [*((mentor_id, LOCKED) for mentor_id in self.skipped), *self.broken.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """The changes that a run would make for one mentor."""

    decision: Decision
    new_reminders: tuple[Reminder, ...]
    has_address: bool = True
    """Whether the new reminders, if there are any, can be sent."""
    held_because: Effect | None = None
    """The effect for which a guard holds the whole decision, or REMINDER: only the new reminders."""

    @property
    def is_held(self) -> bool:
        """Whether a guard holds the whole decision."""
        return self.held_because not in (None, Effect.REMINDER)

    @property
    def last_days(self) -> dict[str, date | None]:
        """The last certified day before and after the change; None: not certified."""
        old, new = self.decision.stored_until, self.decision.certified_until
        return {
            "old_last_day": None if old == NOT_CERTIFIED else old,
            "new_last_day": None if new == NOT_CERTIFIED else new,
        }

    def sort_key(self) -> tuple[str, int, bool, bool, bool, str]:
        """Sort by organisation: held changes by their harm, pauses, returns, reminders, changes of a status only."""
        pause, effects = self.decision.pause, list(Effect)
        return (
            self.decision.organisation.slug,
            effects.index(self.held_because) if self.held_because else len(effects),
            pause is not PauseChange.OPEN,
            pause is not PauseChange.LIFT,
            not self.new_reminders,
            self.decision.member_no,
        )

    def to_document(self) -> dict[str, Any]:
        """Return the entry of ``changes``."""
        decision = self.decision
        return {
            "mentor_id": str(decision.mentor_id),
            "member_no": decision.member_no,
            "organisation": decision.organisation.slug,
            "transitions": [
                {"certificate_id": str(t.certificate_id), "from": str(t.from_status), "to": str(t.to_status)}
                for t in decision.transitions
            ],
            "pause": str(decision.pause) if decision.pause else None,
            "reminders": [
                {
                    "certificate_id": str(r.cert_id),
                    "threshold_days": r.threshold_days,
                    "expires_on": r.expires_on.isoformat(),
                    "has_address": self.has_address,
                    "held": self.held_because is not None,
                }
                for r in self.new_reminders
            ],
            "portal": decision.visible if decision.push else None,
            "held": self.is_held,
            "held_because": str(self.held_because) if self.held_because else None,
            **{name: day and day.isoformat() for name, day in self.last_days.items()},
        }
