"""The plan: what tonight would do, from the facts alone, writing nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob import database, facts, rules
from certjob.models import Decision, Mentor

CHUNK_SIZE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A mentor for whom nothing could be done, and why."""

    mentor_id: UUID
    reason: str


def decide_each(mentors: Iterable[Mentor], today: date) -> tuple[list[Decision], list[Problem]]:
    """Decide for each mentor; one whose data break a rule becomes a problem and does not stop the others."""
    decisions: list[Decision] = []
    problems: list[Problem] = []
    for mentor in mentors:
        try:
            decisions.append(rules.decide(mentor, today))
        except Exception as error:  # noqa: BLE001 - whatever it is, the night goes on and the mentor is named
            problems.append(Problem(mentor_id=mentor.id, reason=f"no decision: {type(error).__name__}: {error}"))
    return decisions, problems


def due_decisions(
    connection: database.Connection, *, today: date, organisation_id: UUID | None, everybody: bool = False
) -> Iterator[tuple[list[Decision], list[Problem]]]:
    """Yield the decisions about the due mentors (or everybody) in chunks, without locks, on a read-only server too."""
    due_by = None if everybody else today
    for mentors in facts.read_due(connection, due_by=due_by, organisation_id=organisation_id, chunk_size=CHUNK_SIZE):
        yield decide_each(mentors, today)
