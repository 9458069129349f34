"""A programme of random mentors, everything that the database stores about it, and the decisions of the rules."""

import contextlib
import random
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import psycopg

from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Decision, Mentor
from certjob.facts import reading
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING, night

Table = list[tuple[object, ...]]


def all_rows(facts: Facts) -> dict[str, Table]:
    """Return all rows of all tables as text."""
    tables = facts.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'certjob'::regnamespace")
    return {str(table): facts.rows(f"SELECT t::text FROM {table} AS t ORDER BY 1") for (table,) in tables}


def random_programme(facts: Facts, *, seed: int, mentors: int = 120) -> None:
    """Add organisations, mentors, certificates and pauses of every kind, and run two earlier nights."""
    chance = random.Random(seed)
    organisations = [
        facts.organisation("hlf", optional_kinds=["course0"]),
        facts.organisation("nhf", portal=None, thresholds=[30, 0, -5]),
        facts.organisation("lhl", thresholds=[]),
    ]
    people = [facts.mentor(chance.choice(organisations)) for _ in range(mentors)]
    for person in people:
        for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
            issued_on = TODAY + timedelta(days=chance.randint(-800, 40))
            expires_on = issued_on + timedelta(days=chance.choice([0, 30, 365, 400, 730]))
            kind = chance.choice(["likeperson", "course"]) + str(chance.randint(0, 1))
            revoked_at = datetime.now(UTC) if chance.random() < 0.1 else None
            with contextlib.suppress(psycopg.errors.UniqueViolation):
                facts.certificate(person, expires_on, kind=kind, issued_on=issued_on, revoked_at=revoked_at)
    for days in (40, 3):
        night(facts.connection, TODAY - timedelta(days=days), deliver=False, allow=EVERYTHING)
    for person in chance.sample(people, mentors // 3):
        facts.connection.execute(chance.choice(HAPPENINGS).encode(), (person,))


HAPPENINGS = (
    "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'illness', 'coordinator')",
    "UPDATE mentors SET left_at = now() WHERE id = %s",
    "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %s",
    "UPDATE certificates SET expires_on = expires_on + 200 WHERE mentor_id = %s",
    "DELETE FROM certificates WHERE mentor_id = %s",
)
"""Changes of a mentor between two nights."""


def changes_by_mentor(facts: Facts) -> dict[str, set[tuple[str, ...]]]:
    """Return what runs have written, by mentor: the kind of change, the new status, and the row with its version."""
    rows = facts.rows(
        "SELECT mentor_id::text, 'status', to_status, id::text FROM certificate_transitions"
        " UNION ALL SELECT mentor_id::text, 'pause', '', id::text FROM mentor_pauses WHERE actor = 'certjob'"
        " UNION ALL SELECT mentor_id::text, 'resume', '', id::text FROM mentor_pauses WHERE lifted_by = 'certjob'"
        " UNION ALL SELECT mentor_id::text, 'reminder', '', id || ' ' || jsonb_array_length(history)"
        " FROM cert_notification_log"
        " UNION ALL SELECT mentor_id::text, CASE WHEN status = 'withdrawn' THEN 'withdraw' WHEN visible THEN 'show'"
        " ELSE 'hide' END, '', id || ' ' || version FROM portal_sync_events"
    )
    found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for mentor_id, *rest in rows:
        found[str(mentor_id)].add(tuple(map(str, rest)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A mentor with the contact and the decision of the rules."""

    mentor: Mentor
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
        """Whether the stored state of the mentor follows the rules."""
        return not (self.decision.transitions or self.decision.pause or self.decision.push)


def read_people(connection: Connection, today: date) -> dict[UUID, Person]:
    """Return all mentors in the order of their numbers."""
    rows = connection.execute("SELECT id, dynamics_contact_id FROM mentors ORDER BY member_no").fetchall()
    mentors = reading.read(connection, [row[0] for row in rows], lock=False).mentors
    return {
        mentor.id: Person(mentor=mentor, contact_id=contact_id, decision=rules.decide(mentor, today))
        for mentor, (_, contact_id) in zip(mentors, rows, strict=True)
    }
