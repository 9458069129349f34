"""What must be true once everything is calm: what the rules decide from the facts, with nothing left for them to do.

The rules are held by tests of their own, ``tests/domain`` and ``acceptance/test_long_lives.py``, against dates alone.
"""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Decision, Mentor
from certjob.facts import reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A mentor, how to reach them, and what the rules decide of them."""

    mentor: Mentor
    email: str
    contact_id: UUID | None
    decision: Decision

    @property
    def id(self) -> UUID:
        return self.mentor.id

    @property
    def member_no(self) -> str:
        return self.mentor.member_no

    @property
    def has_portal(self) -> bool:
        return self.mentor.organisation.has_portal

    @property
    def is_calm(self) -> bool:
        """Whether everything stored of the mentor is as the rules want it."""
        return not (self.decision.transitions or self.decision.pause or self.decision.push)


def read_people(connection: Connection, today: date) -> dict[UUID, Person]:
    """Read everybody, in the order of their numbers."""
    rows = connection.execute("SELECT id, email, dynamics_contact_id FROM mentors ORDER BY member_no").fetchall()
    mentors = reading.read(connection, [row[0] for row in rows], lock=False).mentors
    return {
        mentor.id: Person(mentor=mentor, email=email, contact_id=contact_id, decision=rules.decide(mentor, today))
        for mentor, (_, email, contact_id) in zip(mentors, rows, strict=True)
    }
