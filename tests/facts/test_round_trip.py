"""`certjob list --everyone --csv` before a load, and `certjob load --exact` after a wrong one."""

import csv
import io
import random
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import Facts
from tests.support.programmes import random_programme

MENTORS = (
    "SELECT member_no, full_name, email, locale, dynamics_contact_id, (left_at AT TIME ZONE 'UTC')::date FROM mentors"
    " ORDER BY organisation_id, member_no"
)
CERTIFICATES = (
    "SELECT mentor_id, kind, issued_on, expires_on, (revoked_at AT TIME ZONE 'UTC')::date FROM certificates"
    " WHERE kind <> 'added' ORDER BY 1, 2, 3"
)
HEADER = (
    "organisation,member_no,full_name,email,locale,dynamics_contact_id,kind,issued_on,expires_on,revoked_on,left_on"
)


def export(here: Certjob, folder: Path) -> list[dict[str, str]]:
    """Write the file ``before.csv``, and return its rows."""
    listed = here("list", "--everyone", "--csv")
    assert (listed.returncode, listed.stderr) == (0, "")
    (folder / "before.csv").write_text(listed.stdout)
    return list(csv.DictReader(io.StringIO(listed.stdout)))


def test_export_is_loaded_without_a_change(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """Also a name like a formula, a revoked certificate, and mentors who have left or have no certificate."""
    random_programme(facts, seed=7, mentors=60)
    facts.mentor(facts.organisation("odd"), full_name="=HYPERLINK(1)", email=None, contact_id=None, member_no="+47 1")
    rows = export(here, tmp_path)
    versions = "SELECT id, xmin::text FROM mentors UNION ALL SELECT id, xmin::text FROM certificates ORDER BY 1"
    before = facts.rows(versions)

    for option in ((), ("--exact",)):
        loaded = here("load", "before.csv", *option)

        assert (loaded.returncode, loaded.stdout) == (0, "")
        assert "warning" not in loaded.stderr
        assert facts.rows(versions) == before
    assert any(row["full_name"] == "'=HYPERLINK(1)" and not row["kind"] for row in rows)
    assert len({row["mentor_id"] for row in rows}) == 61


def test_number_that_a_file_cannot_have_adds_no_second_mentor(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """An app wrote it. A second mentor would get each mail again."""
    hlf = facts.organisation()
    for member_no in ("M  1", "M2 ", "'-10", "M4"):
        facts.certified_mentor(hlf, today() + timedelta(days=300), member_no=member_no, email=None, contact_id=None)
    export(here, tmp_path)

    loaded = here("load", "before.csv", "--exact")

    assert facts.rows("SELECT count(*) FROM mentors") == [(4,)]
    assert loaded.returncode == 3
    assert loaded.stderr.count("member_no: the mentor with this mentor_id has another number") == 3


@pytest.mark.parametrize("seed", range(4))
def test_exact_load_of_an_export_restores_what_a_load_has_changed(
    here: Certjob, facts: Facts, tmp_path: Path, seed: int
) -> None:
    """Names, addresses, contacts, dates, revocations and departures, even those that were empty."""
    random_programme(facts, seed=seed, mentors=40)
    rows = export(here, tmp_path)
    mentors, certificates = facts.rows(MENTORS), facts.rows(CERTIFICATES)
    chance, wrong = random.Random(seed), io.StringIO()
    written = csv.DictWriter(wrong, HEADER.split(","), extrasaction="ignore")
    written.writeheader()
    for row in rows:
        if not row["kind"]:
            row |= {"kind": "added", "issued_on": "2025-01-01", "expires_on": "2027-01-01"}
        for name, value in (
            ("full_name", "Wrong"),
            ("email", "wrong@example.org"),
            ("locale", "en"),
            ("dynamics_contact_id", str(uuid4())),
            ("left_on", str(today())),
            ("revoked_on", str(today())),
            ("expires_on", "2040-01-01"),
        ):
            row[name] = value if chance.random() < 0.5 else row[name]
        written.writerow(row)
    (tmp_path / "wrong.csv").write_text(wrong.getvalue())
    assert here("load", "wrong.csv").returncode == 0
    assert facts.rows(MENTORS) != mentors

    restored = here("load", "before.csv", "--exact")

    assert restored.returncode == 0
    assert (facts.rows(MENTORS), facts.rows(CERTIFICATES)) == (mentors, certificates)


def test_exact_load_names_what_it_lifts_and_what_stays(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """Each revocation and departure, and each certificate that was added, also if it is no dry run."""
    organisation, later = facts.organisation(), today() + timedelta(days=300)
    for number in ("M1", "M2"):
        facts.certified_mentor(organisation, later, member_no=number)
    export(here, tmp_path)
    days = f"likeperson,2024-01-01,{later}"
    (tmp_path / "wrong.csv").write_text(
        f"organisation,member_no,kind,issued_on,expires_on,revoked_on,left_on\nhlf,M1,{days},{today()},\n"
        f"hlf,M2,{days},,{today()}\nhlf,M2,kurs,2025-05-05,2028-05-05,,\n"
    )
    here("load", "wrong.csv")

    planned, done = here("load", "before.csv", "--exact", "--dry-run"), here("load", "before.csv", "--exact")

    named = [
        "organisation,member_no,kind,issued_on,what,old,new",
        f"hlf,M2,,,left_on (departure lifted),{today()},",
        f"hlf,M1,likeperson,2024-01-01,revoked_on (revocation lifted),{today()},",
        'hlf,M2,kurs,2025-05-05,"not in the file, stays",2028-05-05,2028-05-05',
    ]
    assert done.stdout.splitlines() == named
    assert [line for line in planned.stdout.splitlines() if line in named] == named
    assert facts.rows("SELECT count(left_at) FROM mentors") == [(0,)]


def test_empty_cell_changes_nothing_without_exact(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """A column that is not in the file changes nothing in any case."""
    facts.certified_mentor(facts.organisation(), today(), member_no="M1", full_name="Kari")
    (tmp_path / "short.csv").write_text("organisation,member_no,email\nhlf,M1,\n")

    here("load", "short.csv")
    assert facts.rows("SELECT full_name, email FROM mentors") == [("Kari", "m1@example.org")]

    here("load", "short.csv", "--exact")
    assert facts.rows("SELECT full_name, email FROM mentors") == [("Kari", None)]


def test_departure_at_an_impossible_time_stays_one(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """The app can write times that Python cannot represent."""
    organisation = facts.organisation()
    for number, left_at in (("M1", "-infinity"), ("M2", "0044-03-15 BC")):
        facts.insert("mentors", organisation_id=organisation, member_no=number, left_at=left_at)
    rows = export(here, tmp_path)

    here("load", "before.csv", "--exact")

    assert [row["left_on"] for row in rows] == ["0001-01-02"] * 2
    assert facts.rows("SELECT count(left_at) FROM mentors") == [(2,)]
