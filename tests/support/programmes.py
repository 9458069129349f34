"""A whole programme of mentors by chance, and everything that the database holds of it."""

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg

from tests.support.facts import TODAY, Facts
from tests.support.nights import night

Table = list[tuple[object, ...]]


def everything(facts: Facts) -> dict[str, Table]:
    """All rows of all tables, as text."""
    tables = [
        row[0]
        for row in facts.rows(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
    ]
    return {str(table): facts.rows(f"SELECT t::text FROM {table} AS t ORDER BY 1") for table in tables}


def random_programme(facts: Facts, *, seed: int, mentors: int = 120) -> None:
    """Organisations, mentors, certificates and pauses of every kind, some of them already seen by earlier nights."""
    chance = random.Random(seed)
    organisations = [
        facts.organisation("hlf", optional_kinds=["course"]),
        facts.organisation("nhf", portal=None, thresholds=[30, 0, -5]),
        facts.organisation("lhl", thresholds=[]),
    ]
    people = [facts.mentor(chance.choice(organisations)) for _ in range(mentors)]

    def certify(mentor_id: UUID) -> None:
        issued_on = TODAY + timedelta(days=chance.randint(-800, 40))
        facts.certificate(
            mentor_id,
            issued_on + timedelta(days=chance.choice([0, 30, 365, 400, 730])),
            kind=chance.choice(["likeperson", "course"]) + str(chance.randint(0, 1)),
            issued_on=issued_on,
            revoked_at=datetime.now(UTC) if chance.random() < 0.1 else None,
        )

    for person in people:
        for _ in range(chance.choice([0, 1, 1, 1, 2, 3])):
            try:
                certify(person)
            except psycopg.errors.UniqueViolation:
                continue
    for night_before in (40, 3):
        night(facts.connection, TODAY - timedelta(days=night_before), deliver=False, allow_mass_change=True)
    for person in chance.sample(people, mentors // 3):
        change_something(facts, person, chance)


def change_something(facts: Facts, person: UUID, chance: random.Random) -> None:
    """One of the things that happen between two nights."""
    match chance.randint(0, 4):
        case 0:
            facts.connection.execute("UPDATE mentors SET left_at = now() WHERE id = %s", (person,))
        case 1:
            facts.pause(person, reason=chance.choice(["illness", "leave"]))
        case 2:
            facts.connection.execute(
                "UPDATE certificates SET expires_on = expires_on + 200 WHERE mentor_id = %s", (person,)
            )
        case 3:
            facts.connection.execute("DELETE FROM certificates WHERE mentor_id = %s", (person,))
        case _:
            facts.connection.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (uuid4(), person))
