"""Loading a CSV: the rows become facts, the later line wins, a second load changes nothing."""

from datetime import UTC, date, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from certjob.facts import loading
from certjob.facts.loading import LoadReport
from certjob.facts.roster import Cost, LoadOptions, Problem
from tests.support.facts import Facts
from tests.support.loading import REQUIRED, Loader, many

App = psycopg.Connection[tuple[object, ...]]

CONTACT = UUID("0b6c0f5e-52a5-4f0e-8f0c-0d5a3c9c7a11")
HEADER = (
    "organisation,member_no,full_name,email,locale,dynamics_contact_id,kind,issued_on,expires_on,revoked_on,left_on"
)
ROW = "hlf,M1,likeperson,2024-02-01,2026-02-01"


@pytest.fixture
def loader(connection: Connection, facts: Facts, tmp_path: Path) -> Loader:
    """Loads into a database with the organisation ``hlf``."""
    facts.organisation("hlf")
    return Loader(connection, tmp_path)


def settle(facts: Facts) -> None:
    """Everybody has been reviewed."""
    facts.connection.execute("UPDATE mentors SET review_on = '2026-01-01'")


def due(facts: Facts) -> list[object]:
    """The numbers of those whom the next night looks at."""
    return [row[0] for row in facts.rows("SELECT member_no FROM mentors WHERE review_on = '-infinity' ORDER BY 1")]


def versions(facts: Facts) -> list[tuple[object, ...]]:
    """Which transaction wrote or locked each row last."""
    return facts.rows(
        "SELECT id, xmin::text, xmax::text FROM mentors"
        " UNION ALL SELECT id, xmin::text, xmax::text FROM certificates ORDER BY id"
    )


def test_a_row_becomes_a_mentor_and_a_certificate(loader: Loader, facts: Facts) -> None:
    """All columns, both date forms, a name in any script."""
    report = loader.rows(
        f"HLF,M1, Kåre  Ødegård ,kare@example.org,NN,{{{str(CONTACT).upper()}}},likeperson"
        ",2024-02-01,1.2.2026,05.03.2025,",
        "hlf,M2,山田 太郎,,,,likeperson,2024-02-01,2026-02-01,,2025-05-31",
        header=HEADER,
    )

    assert facts.rows(
        "SELECT m.member_no, m.full_name, m.email, m.locale, m.dynamics_contact_id, m.left_at, c.kind, c.issued_on,"
        " c.expires_on, c.revoked_at, c.status, m.review_on = '-infinity', m.portal_visible"
        " FROM mentors m JOIN certificates c ON c.mentor_id = m.id ORDER BY m.member_no"
    ) == [
        (
            *("M1", "Kåre Ødegård", "kare@example.org", "nn", CONTACT, None),
            *("likeperson", date(2024, 2, 1), date(2026, 2, 1), datetime(2025, 3, 5, tzinfo=UTC)),
            *("recorded", True, True),
        ),
        (
            *("M2", "山田 太郎", None, "nb", None, datetime(2025, 5, 31, tzinfo=UTC)),
            *("likeperson", date(2024, 2, 1), date(2026, 2, 1), None, "recorded", True, True),
        ),
    ]
    assert report == LoadReport(
        rows=2,
        loaded=2,
        rejected=0,
        repeated=0,
        mentors_added=2,
        mentors_changed=0,
        certificates_added=2,
        certificates_changed=0,
        unchanged=0,
    )


def test_what_is_so_already_is_not_written_and_what_is_empty_or_absent_changes_nothing(
    loader: Loader, facts: Facts
) -> None:
    """Not a row is written, not even locked; empty dates revive nothing and bring nobody back."""
    rows = [
        f"hlf,M1,Kari,kari@example.org,en,{CONTACT},likeperson,2024-02-01,2026-02-01,2025-06-01,2025-06-02",
        "hlf,M1,,,,,førstehjelp,2024-02-01,2026-02-01,,",
        "hlf,M2,Per,per@example.org,,,likeperson,2024-02-01,2026-02-01,,",
    ]
    loader.rows(*rows, header=HEADER)
    settle(facts)
    before = versions(facts)

    again = loader.rows(*rows, header=HEADER)
    empty = loader.rows("hlf,M1,, ,,,likeperson,2024-02-01,2026-02-01,,", header=HEADER)
    absent = loader.rows(ROW)

    assert (again.loaded, again.unchanged, again.mentors_changed, empty.unchanged, absent.unchanged) == (3, 3, 0, 1, 1)
    assert versions(facts) == before


def test_another_expiry_changes_the_row_in_place_and_another_issue_date_is_a_renewal(
    loader: Loader, facts: Facts
) -> None:
    """The certificate keeps its id, so its reminders re-arm; its mentor is looked at again, others are left alone."""
    loader.rows(ROW, ROW.replace("M1", "M2"))
    settle(facts)
    ids = facts.rows("SELECT id FROM certificates ORDER BY id")

    extended = loader.rows(ROW.replace("2026", "2028"), ROW.replace("M1", "M2"))
    assert (extended.certificates_added, extended.certificates_changed, extended.unchanged) == (0, 1, 1)
    assert facts.rows("SELECT id FROM certificates ORDER BY id") == ids
    assert due(facts) == ["M1"]

    renewed = loader.rows("hlf,M2,likeperson,2026-02-02,2028-02-01")
    assert (renewed.mentors_added, renewed.certificates_added, renewed.certificates_changed) == (0, 1, 0)
    assert due(facts) == ["M1", "M2"]
    dates = "SELECT member_no, issued_on::text, expires_on::text FROM mentors m JOIN certificates c ON mentor_id = m.id"
    assert facts.rows(dates + " ORDER BY 1, 2") == [
        ("M1", "2024-02-01", "2028-02-01"),
        ("M2", "2024-02-01", "2026-02-01"),
        ("M2", "2026-02-02", "2028-02-01"),
    ]


def test_a_revocation_and_a_departure_keep_the_hour_that_the_app_knows(loader: Loader, facts: Facts) -> None:
    """The file knows only the day; another day replaces it, and the mentor is looked at again."""
    header = REQUIRED + ",revoked_on,left_on"
    loader.rows(ROW + ",2025-06-01,2025-06-01", header=header)
    loader.connection.execute("UPDATE certificates SET revoked_at = '2025-06-01 11:30+00'")
    loader.connection.execute("UPDATE mentors SET left_at = '2025-06-01 11:30+00'")
    settle(facts)
    read = "SELECT revoked_at, left_at FROM certificates, mentors"

    same = loader.rows(ROW + ",2025-06-01,2025-06-01", header=header)
    kept = facts.rows(read)
    other = loader.rows(ROW + ",2025-06-02,02.06.2025", header=header)

    assert (same.unchanged, same.mentors_changed) == (1, 0)
    assert kept == [(datetime(2025, 6, 1, 11, 30, tzinfo=UTC),) * 2]
    assert (other.certificates_changed, other.mentors_changed) == (1, 1)
    assert facts.rows(read) == [(datetime(2025, 6, 2, tzinfo=UTC),) * 2]
    assert due(facts) == ["M1"]


def test_a_mentors_changed_facts_have_their_effects(loader: Loader, facts: Facts) -> None:
    """Another contact: push whatever is wanted. Another e-mail: look again. Another name: nothing to decide."""
    header = "organisation,member_no,full_name,email,dynamics_contact_id,kind,issued_on,expires_on"
    end = "likeperson,2024-02-01,2026-02-01"
    loader.rows(*(f"hlf,{number},Kari,old@example.org,,{end}" for number in ("M1", "M2", "M3")), header=header)
    settle(facts)

    report = loader.rows(
        f"hlf,M1,Kari,old@example.org,{CONTACT},{end}",
        f"hlf,M2,Kari,new@example.org,,{end}",
        f"hlf,M3,Kari Nordmann,old@example.org,,{end}",
        header=header,
    )

    assert (report.mentors_changed, report.unchanged) == (3, 3)
    assert facts.rows("SELECT portal_visible, full_name FROM mentors ORDER BY member_no") == [
        (None, "Kari"),
        (True, "Kari"),
        (True, "Kari Nordmann"),
    ]
    assert due(facts) == ["M1", "M2"]


def test_the_later_of_two_lines_wins_and_the_earlier_is_counted_as_repeated(loader: Loader, facts: Facts) -> None:
    """What the later line leaves empty, the earlier one still says; a bad later line leaves the earlier one."""
    header = REQUIRED + ",email,revoked_on"
    rows = (
        "hlf,M1,likeperson,2024-02-01,2026-02-01,a@example.org,2025-01-01",
        "hlf,M2,likeperson,2024-02-01,2026-02-01,,",
        "hlf,M1,likeperson,2024-02-01,2025-02-01,b@example.org,",
        "hlf,M1,likeperson,01.02.2024,2027-02-01,,",
        "hlf,M2,likeperson,2024-02-01,2026-02-30,,",
    )

    report = loader.rows(*rows, header=header)

    assert (report.rows, report.loaded, report.repeated, report.rejected) == (5, 2, 2, 1)
    assert facts.rows(
        "SELECT m.email, c.expires_on, c.revoked_at FROM mentors m JOIN certificates c ON c.mentor_id = m.id ORDER BY 1"
    ) == [("b@example.org", date(2027, 2, 1), datetime(2025, 1, 1, tzinfo=UTC)), (None, date(2026, 2, 1), None)]
    assert loader.rows(*rows, header=header).unchanged == 2


def test_lines_of_one_mentor_far_apart_in_the_file_do_not_undo_each_other(
    loader: Loader, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First and last line of a file that takes three commits; a second load still writes nothing."""
    monkeypatch.setattr(loading, "ROWS_PER_BATCH", 100)
    text = many(250).replace(REQUIRED, REQUIRED + ",email").replace("2027-01-01", "2027-01-01,")
    text = text.replace("email\n", "email\nhlf,M000077,likeperson,2024-02-01,2025-01-01,first@example.org\n")
    text += "\nhlf,M000077,likeperson,2024-02-01,2029-01-01,last@example.org"

    report = loader(text)
    before = versions(facts)
    again = loader(text)

    assert (report.rows, report.loaded, report.repeated) == (252, 250, 2)
    assert facts.rows(
        "SELECT m.email FROM mentors m JOIN certificates c ON mentor_id = m.id WHERE expires_on > '2028-1-1'"
    ) == [("last@example.org",)]
    assert (again.unchanged, again.repeated, again.mentors_changed) == (250, 2, 0)
    assert versions(facts) == before


def test_who_is_the_same_mentor(loader: Loader, facts: Facts) -> None:
    """One member number in two organisations is two; å in one character or in two is one."""
    facts.organisation("lhl", portal=None)

    report = loader.rows(ROW.replace("M1", "M\u00e51"), ROW.replace("M1", "M\u00e51").replace("hlf", "lhl"))
    again = loader.rows(ROW.replace("M1", "Ma\u030a1"))

    assert (report.mentors_added, report.certificates_added, report.repeated) == (2, 2, 0)
    assert (again.mentors_added, again.unchanged) == (0, 1)


def test_a_strict_load_with_a_bad_row_loads_nothing_and_names_every_bad_row(loader: Loader, facts: Facts) -> None:
    """All or nothing."""
    report = loader.rows(
        ROW,
        "hlf,M2,likeperson,2024-02-01,2023-02-01",
        "hlf,M3,likeperson,never,2026-02-01",
        ROW,
        options=LoadOptions(strict=True),
    )

    assert (report.rows, report.loaded, report.repeated, report.rejected) == (4, 0, 1, 2)
    assert (report.certificates_added, report.unchanged) == (0, 0)
    assert [(row.line, row.column) for row in loader.rejected] == [(3, "expires_on"), (4, "issued_on")]
    assert facts.rows("SELECT FROM mentors") == []


@pytest.mark.parametrize("strict", [False, True])
def test_it_commits_by_a_thousand_rows_and_a_strict_load_all_at_once(
    loader: Loader, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    """What is done is done, and locks are not held for long. A pooler that gets the session finds nothing in it."""
    monkeypatch.setattr(loading, "ROWS_PER_BATCH", 100)
    seen: list[tuple[int, int, int]] = []

    def look(written: int, all_rows: int) -> None:
        seen.append((written, all_rows, len(app.execute("SELECT FROM mentors").fetchall())))
        app.rollback()

    report = loader(many(250), options=LoadOptions(strict=strict), on_progress=look)

    assert seen == [(done, 250, 0 if strict else done) for done in (100, 200, 250)]
    assert report.certificates_added == 250
    assert facts.rows("SELECT relname FROM pg_class WHERE relname = 'load_rows'") == []
    assert facts.rows("SHOW lock_timeout") == [("0",)]
    assert facts.rows("SELECT name FROM pg_prepared_statements") == []


def test_a_mentor_with_very_many_certificates_is_written_in_several_batches(
    loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a constant is given as member number."""
    monkeypatch.setattr(loading, "ROWS_PER_BATCH", 100)
    rows = [f"hlf,M1,kind {number},2024-02-01,2026-02-01" for number in range(180)]

    report = loader.rows(*rows)

    assert (report.mentors_added, report.certificates_added) == (1, 180)
    assert loader.rows(*rows).unchanged == 180


def test_two_mentors_with_one_contact_are_both_loaded_and_the_second_without_it(loader: Loader, facts: Facts) -> None:
    """The contact ID is wrong, the renewal is not; whoever reads the report corrects it."""
    header = "organisation,member_no,dynamics_contact_id,kind,issued_on,expires_on"

    report = loader.rows(
        *(f"hlf,M{n},{CONTACT if n < 3 else ''},likeperson,2024-02-01,2026-02-01" for n in (1, 2, 3)), header=header
    )

    assert (report.loaded, report.rejected) == (3, 0)
    reason = "another mentor of the organisation has this contact ID"
    assert loader.problems == [Problem(line=3, column="dynamics_contact_id", reason=reason, cost=Cost.CELL)]
    assert facts.rows("SELECT dynamics_contact_id FROM mentors ORDER BY member_no") == [(CONTACT,), (None,), (None,)]


def test_a_file_of_mentors_alone_corrects_addresses_and_contact_ids_and_adds_nobody(
    loader: Loader, facts: Facts
) -> None:
    """No certificate is needed to correct an address, and none is touched. A mistyped number would become a mentor."""
    loader.rows(ROW, ROW.replace("M1", "M2"))
    settle(facts)
    rows = ("hlf,M1,old@example.org,", "hlf,M2,,", f"hlf,M1,kari@example.org,{CONTACT}", "hlf,M11,per@example.org,")

    report = loader.rows(*rows, header="organisation,member_no,email,dynamics_contact_id")
    reason = "no such mentor; somebody new comes with a certificate"
    assert loader.problems == [Problem(line=5, column="(line)", reason=reason)]
    before = versions(facts)
    again = loader.rows(*rows, header="organisation,member_no,email,dynamics_contact_id")

    assert versions(facts) == before
    assert (report.rows, report.loaded, report.repeated, report.rejected) == (4, 2, 1, 1)
    assert (report.mentors_changed, report.certificates_changed, report.unchanged) == (1, 0, 1)
    assert (again.mentors_changed, again.unchanged) == (0, 2)
    assert due(facts) == ["M1"]
    assert facts.rows("SELECT email, dynamics_contact_id FROM mentors ORDER BY member_no") == [
        ("kari@example.org", CONTACT),
        (None, None),
    ]
