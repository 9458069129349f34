"""The plan: the decisions that a run would make, without a write."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from uuid import UUID

from certjob import database
from certjob.domain import rules
from certjob.domain.models import Decision, PauseChange, Status
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
    """Yield the results of ``decide_each`` for the due mentors, or for all, in chunks and without locks.

    A run makes all mentors due before it reviews everybody, so none of them is due by the calendar then.
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
    reminders_queued: int = 0
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
