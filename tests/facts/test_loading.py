"""Load a CSV file: facts, repeated loads, and other sessions."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import InputError, MentorBusyError
from certjob.facts import loading
from certjob.facts.loading import LoadReport, load_file
from tests.support.facts import TODAY, Facts
from tests.support.nights import in_background
from tests.support.waiting import until, waits_for_a_lock

REQUIRED = "organisation,member_no,kind,issued_on,expires_on"
"""The header of the shortest file."""


@dataclass
class Loader:
    """Loads texts into a database."""

    connection: Connection

    def __call__(self, text: str) -> LoadReport:
        return load_file(self.connection, text.encode(), today=TODAY)

    def rows(self, *rows: str, more_columns: str = "") -> dict[str, int]:
        """Load these rows without a problem; return the numbers of written rows that are not zero."""
        report = self("\n".join([REQUIRED + more_columns, *rows]))
        assert (report.rows, report.problems) == (len(rows), [])
        return written(report)

    def found(self, statement: str) -> list[tuple[Any, ...]]:
        """Return rows of the database."""
        return Facts(self.connection).rows(statement)

    def due(self) -> list[str]:
        """Return the member numbers that the next run reviews because of a change."""
        return [row[0] for row in self.found("SELECT member_no FROM mentors WHERE review_on = '-infinity' ORDER BY 1")]


def written(report: LoadReport) -> dict[str, int]:
    """Return the numbers of written rows that are not zero."""
    names = ("mentors_added", "mentors_changed", "certificates_added", "certificates_changed")
    return {name: number for name in names if (number := getattr(report, name))}


App = psycopg.Connection[tuple[object, ...]]

CONTACT = UUID("0b6c0f5e-52a5-4f0e-8f0c-0d5a3c9c7a11")
CONTACTS = "SELECT member_no, dynamics_contact_id FROM mentors ORDER BY member_no"


@pytest.fixture
def loader(connection: Connection, facts: Facts) -> Loader:
    """Loads into a database with the organisation ``hlf``."""
    facts.organisation("hlf")
    return Loader(connection)


def row(number: str, expires_on: str = "2026-02-01", *more: str) -> str:
    """Return a line of a file."""
    return ",".join(["hlf", number, "likeperson", "2024-02-01", expires_on, *more])


def test_row_becomes_a_mentor_and_a_certificate(loader: Loader) -> None:
    loaded = loader.rows(
        f"HLF,M1,likeperson,2024-02-01,1.2.2026, Kåre  Ødegård ,kare@example.org,NN,{CONTACT},05.03.2025,",
        "hlf,M2,likeperson,2024-02-01,2026-02-01,山田 太郎,,,,,2025-05-31",
        more_columns=",full_name,email,locale,dynamics_contact_id,revoked_on,left_on",
    )

    mentors = "SELECT member_no, full_name, email, locale, dynamics_contact_id, left_at FROM mentors ORDER BY 1"
    assert loader.found(mentors) == [
        ("M1", "Kåre Ødegård", "kare@example.org", "nn", CONTACT, None),
        ("M2", "山田 太郎", None, "nb", None, datetime(2025, 5, 31, tzinfo=UTC)),
    ]
    certificates = "SELECT kind, issued_on, expires_on, status, revoked_at FROM certificates ORDER BY revoked_at"
    certificate = ("likeperson", date(2024, 2, 1), date(2026, 2, 1), "recorded")
    assert loader.found(certificates) == [(*certificate, datetime(2025, 3, 5, tzinfo=UTC)), (*certificate, None)]
    assert (loaded, loader.due()) == ({"mentors_added": 2, "certificates_added": 2}, ["M1", "M2"])


@pytest.mark.parametrize(
    "cells",
    [f"Kari,k@example.org,en,{CONTACT},2025-06-01,2025-06-02", " ,,,,,"],
    ids=["same row", "empty cells"],
)
def test_second_load_writes_and_locks_nothing(loader: Loader, cells: str) -> None:
    """An empty cell keeps the stored value."""
    columns = ",full_name,email,locale,dynamics_contact_id,revoked_on,left_on"
    given = row("M1", "2026-02-01", "Kari", "k@example.org", "en", str(CONTACT), "2025-06-01", "2025-06-02")
    loader.rows(given, more_columns=columns)
    loader.connection.execute("UPDATE mentors SET review_on = '2026-12-01'")
    versions = "SELECT id, xmin::text, xmax::text FROM"
    versions = f"{versions} mentors UNION ALL {versions} certificates ORDER BY id"
    before = loader.found(versions)

    again = loader.rows(row("M1", "2026-02-01", cells), more_columns=columns)

    assert (again, loader.due(), loader.found(versions)) == ({}, [], before)


def test_change_is_made_in_place_and_makes_the_mentor_due(loader: Loader) -> None:
    """A certificate keeps its id, and with it its reminders. A new name causes no review."""
    columns = ",full_name,email"
    loader.rows(
        *(row(f"M{number}", "2026-02-01", "Kari", "old@example.org") for number in (1, 2, 3)), more_columns=columns
    )
    loader.connection.execute("UPDATE mentors SET review_on = '2026-12-01'")
    ids = loader.found("SELECT id FROM certificates ORDER BY id")

    loaded = loader.rows(
        row("M1", "2028-02-01", "Kari", "old@example.org"),
        row("M2", "2026-02-01", "Kari", "new@example.org"),
        row("M3", "2026-02-01", "Kari Nordmann", "old@example.org"),
        more_columns=columns,
    )

    assert loaded == {"mentors_changed": 2, "certificates_changed": 1}
    assert loader.due() == ["M1", "M2"]
    assert loader.found("SELECT id FROM certificates ORDER BY id") == ids


def test_file_of_mentors_alone_adds_no_one(loader: Loader) -> None:
    """A mistyped number would become a mentor without a certificate."""
    loader.rows(row("M1"), row("M2"))

    report = loader(f"organisation,member_no,dynamics_contact_id\nhlf,M1,{CONTACT}\nhlf,M11,")

    reason = "no such mentor; a new mentor needs a certificate"
    assert [(each.line, each.column, each.reason, each.loaded) for each in report.problems] == [
        (3, "member_no", reason, False)
    ]
    assert (written(report), report.skipped) == ({"mentors_changed": 1}, 1)
    assert loader.found(CONTACTS) == [("M1", CONTACT), ("M2", None)]


def test_another_person_with_the_number_of_a_known_mentor_is_rejected(loader: Loader) -> None:
    """A change of the name and the address alone could be a marriage, so it is loaded, with a warning if need be."""
    columns = f"{REQUIRED},full_name,email,dynamics_contact_id"
    known, other = str(CONTACT), str(UUID(int=7))
    kari, rada = ("2026-02-01", "Kari", "k@example.org", known), ("2026-02-01", "Rada", "r@example.org", "")
    loader("\n".join([columns, row("M1", *kari), row("M2", *rada)]))

    rejected = loader("\n".join([columns, row("M1", "2027-02-01", "Ola", "ola@example.org", other)]))
    married = loader("\n".join([columns, row("M1", "2027-02-01", "Kari Hansen", "kh@example.org", known)]))
    warned = loader("\n".join([columns, row("M2", "2027-02-01", "Ola", "ola@example.org", other)]))

    assert [(each.column, each.reason, each.loaded) for each in rejected.problems] == [
        ("member_no", "the mentor with this number has another name, another address and another contact ID", False)
    ]
    assert (rejected.skipped, written(rejected)) == (1, {})
    assert (married.problems, written(married)) == ([], {"mentors_changed": 1, "certificates_changed": 1})
    assert [(each.reason, each.is_warning, each.loaded) for each in warned.problems] == [
        ("the mentor with this number has another name and another address", True, True)
    ]


def load_contacts(loader: Loader, *contacts: int) -> list[int]:
    """Load M1, M2, … with these contact IDs; return the lines that were rejected."""
    lines = [row(f"M{number}", "2026-02-01", str(UUID(int=contact))) for number, contact in enumerate(contacts, 1)]
    report = loader("\n".join([REQUIRED + ",dynamics_contact_id", *lines]))
    assert {problem.reason for problem in report.problems} <= {"another mentor has this contact ID"}
    assert report.skipped == len(report.problems)
    return [problem.line for problem in report.problems]


def contacts(loader: Loader) -> list[int]:
    return [contact.int for _, contact in loader.found(CONTACTS)]


def test_contact_id_of_another_mentor_is_rejected(loader: Loader, facts: Facts) -> None:
    """In the file, in the database, or in another organisation. The problem does not name the other mentor."""
    facts.mentor(facts.organisation("lhl"), member_no="M0", contact_id=UUID(int=9))
    load_contacts(loader, 1)

    assert load_contacts(loader, 1, 1, 9, 4, 4) == [3, 4, 5, 6]
    assert contacts(loader) == [9, 1]


def test_contact_ids_may_be_swapped_in_one_file(loader: Loader) -> None:
    """If one of the two mentors is rejected and keeps the old ID, the other one is rejected as well."""
    load_contacts(loader, 1, 2, 3)

    assert load_contacts(loader, 3, 1) == [2, 3]
    assert load_contacts(loader, 2, 1) == []
    assert contacts(loader) == [2, 1, 3]


def test_value_that_a_constraint_rejects_loads_nothing(loader: Loader) -> None:
    """The error names the constraint and does not quote the row."""
    loader.connection.execute("ALTER TABLE mentors ADD CONSTRAINT no_such_number CHECK (member_no <> 'forbidden')")

    with pytest.raises(InputError, match=r"the database rejects this file \(no_such_number\); nothing was loaded"):
        loader.rows(row("M1"), row("forbidden"))

    assert loader.found("SELECT FROM mentors") == []


def test_load_and_app_both_make_their_changes(loader: Loader, app: App, database_url: str) -> None:
    """The load waits for the app, and tries again after a deadlock with it."""
    loader.rows(row("M1"))
    app.execute("SET deadlock_timeout = '10s'")  # the load notices first
    loader.connection.execute("SET deadlock_timeout = '300ms'")
    app.execute("UPDATE mentors SET full_name = 'Kari'")

    def change_the_certificate() -> None:
        with database.connect(database_url) as observer:
            until(lambda: waits_for_a_lock(observer, loader.connection))
        app.execute("UPDATE certificates SET revoked_at = '2025-05-05 12:00+00'")
        app.commit()

    with in_background(change_the_certificate):
        loaded = loader.rows(row("M1", "2027-02-01", "new@example.org"), more_columns=",email")

    assert loaded == {"mentors_changed": 1, "certificates_changed": 1}
    assert loader.found("SELECT full_name, email FROM mentors") == [("Kari", "new@example.org")]
    assert loader.found("SELECT expires_on::text, revoked_at IS NULL FROM certificates") == [("2027-02-01", False)]


def test_load_gives_up_if_another_session_keeps_a_row(
    loader: Loader, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later load succeeds."""
    monkeypatch.setattr(loading, "_LOCK_TIMEOUT_MS", 20)
    loader.rows(row("M1"), row("M2"))
    app.execute("SELECT FROM mentors WHERE member_no = 'M2' FOR NO KEY UPDATE")

    with pytest.raises(MentorBusyError, match="nothing was loaded; try again"):
        loader.rows(row("M1", "2028-01-01"), row("M2", "2028-01-01"))

    assert loader.found("SELECT FROM certificates WHERE expires_on = '2028-01-01'") == []
    app.rollback()
    assert loader.rows(row("M1", "2028-01-01"), row("M2", "2028-01-01")) == {"certificates_changed": 2}
