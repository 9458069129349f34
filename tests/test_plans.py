"""The plans of the statements that a night runs on tables of any size: what is touched is what is due."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from certjob import database
from certjob.database import Connection
from tests.benchmarks.population import run_script, today
from tests.nights import night

SCAN = re.compile(r"Seq Scan on (\w+)")

CHUNK_STATEMENTS = {
    "lock_due_mentors",
    "read_mentors",
    "read_organisations",
    "lock_certificates",
    "lock_open_pauses",
    "update_certificate_statuses",
    "insert_transitions",
    "open_pauses",
    "queue_reminders",
    "supersede_reminders",
    "queue_portal_events",
    "withdraw_portal_events",
    "update_mentors",
}
"""What apply runs for each chunk."""


class Watched:
    """EXPLAIN of every statement by name, as it is run, in its own transaction and with its own parameters."""

    def __init__(self) -> None:
        self.plans: dict[str, list[str]] = {}

    def note(self, connection: Connection, name: str, parameters: Mapping[str, object] | None) -> None:
        rows = connection.execute(b"EXPLAIN " + database.query(name), parameters).fetchall()
        self.plans.setdefault(name, []).append("\n".join(row[0] for row in rows))

    def scanned(self) -> dict[str, set[str]]:
        """The tables that each statement would read as a whole."""
        found = {name: {t for plan in plans for t in SCAN.findall(plan)} for name, plans in self.plans.items()}
        return {name: tables for name, tables in found.items() if tables}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Every statement that certjob runs from here on is explained first."""
    watching = Watched()
    for function in ("fetch", "execute", "fetch_value"):
        real = getattr(database, function)

        def explained(connection: Connection, name: str, *rest: Any, _real: Any = real, **named: Any) -> Any:
            watching.note(connection, name, rest[0] if rest else None)
            return _real(connection, name, *rest, **named)

        monkeypatch.setattr(database, function, explained)
    return watching


def test_the_first_night_of_a_young_database_reads_no_whole_table(connection: Connection, watched: Watched) -> None:
    """Never analysed, and growing while it runs: of 3,000 mentors each chunk reads its own."""
    run_script(connection, "population.sql", mentors=3_000, today=today())

    report = night(connection, today(), deliver=False, allow_mass_change=True)

    assert report.review is not None
    assert report.review.reviewed == 3_000
    assert watched.plans.keys() >= CHUNK_STATEMENTS
    assert {name: tables for name, tables in watched.scanned().items() if name in CHUNK_STATEMENTS} == {}
