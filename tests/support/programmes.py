"""A whole programme of mentors by chance, and everything that the database holds of it."""

import contextlib
import random
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import psycopg

from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING, night

Table = list[tuple[object, ...]]


def everything(facts: Facts) -> dict[str, Table]:
    """All rows of all tables, as text."""
    tables = facts.rows("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'certjob'::regnamespace")
    return {str(table): facts.rows(f"SELECT t::text FROM {table} AS t ORDER BY 1") for (table,) in tables}


def random_programme(facts: Facts, *, seed: int, mentors: int = 120) -> None:
    """Organisations, mentors, certificates and pauses of every kind, some of them already seen by earlier nights."""
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
        match chance.randint(0, len(HAPPENINGS)):
            case 0:
                facts.pause(person, reason=chance.choice(["illness", "leave"]))
            case number:
                facts.connection.execute(HAPPENINGS[number - 1].encode(), (person,))


HAPPENINGS = (
    "UPDATE mentors SET left_at = now() WHERE id = %s",
    "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %s",
    "UPDATE certificates SET expires_on = expires_on + 200 WHERE mentor_id = %s",
    "DELETE FROM certificates WHERE mentor_id = %s",
)
"""What can happen to a mentor between two nights, beside a pause."""


def changes_by_mentor(facts: Facts) -> dict[str, set[tuple[str, ...]]]:
    """Everything that runs have written so far, by mentor: what, the new status, and the row with its version."""
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
