"""A wrong file is seen in the output of `certjob load`, and `certjob load --undo` takes it back."""

import csv
import io
import json
import random
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest

from certjob.facts.roster import COLUMNS
from tests.conftest import Certjob
from tests.support.command_line import Finished, today
from tests.support.facts import Facts
from tests.support.nights import CollectingChannel, night
from tests.support.programmes import random_programme

FACTS = (
    "SELECT member_no, full_name, email, locale, dynamics_contact_id, left_at FROM mentors ORDER BY organisation_id, 1",
    "SELECT id, mentor_id, kind, issued_on, expires_on, revoked_at FROM certificates ORDER BY 1",
)

LoadRows = Callable[..., Finished]


@pytest.fixture
def load(here: Certjob, tmp_path: Path) -> LoadRows:
    """Load rows of `certjob list --csv`, or of texts."""

    def load(rows: list[dict[str, str]], *options: str) -> Finished:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
        (tmp_path / "file.csv").write_text(text.getvalue())
        return here("load", "file.csv", *options)

    return load


def export(here: Certjob) -> list[dict[str, str]]:
    listed = here("list", "--everyone", "--csv")
    assert (listed.returncode, listed.stderr) == (0, "")
    return list(csv.DictReader(io.StringIO(listed.stdout)))


def all_facts(facts: Facts) -> list[list[tuple[object, ...]]]:
    return [facts.rows(statement) for statement in FACTS]


def enter_mentors(facts: Facts, *, mentors: int = 20) -> None:
    """Certificates of twenty months, one ending every tenth day. Three have ended; those mentors are paused."""
    hlf = facts.organisation(thresholds=[30])
    for number in range(mentors):
        last_day = today() + timedelta(days=10 * number - 25)
        mentor = facts.mentor(hlf, member_no=f"M{number:02}", full_name=f"Kari {number}")
        facts.certificate(mentor, last_day, issued_on=last_day - timedelta(days=600))
    night(facts.connection, today(), allow={"hlf": mentors})


def test_export_is_loaded_without_a_change(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """Also a name like a formula, a revoked certificate, and mentors who have left or have no certificate."""
    random_programme(facts, seed=7, mentors=60)
    odd = facts.organisation("odd")
    facts.mentor(odd, full_name="=HYPERLINK(1)", email=None, contact_id=None, member_no="+47 1")
    (tmp_path / "list.csv").write_text(here("list", "--everyone", "--csv").stdout)
    versions = "SELECT id, xmin::text FROM mentors UNION ALL SELECT id, xmin::text FROM certificates ORDER BY 1"
    before = facts.rows(versions)

    loaded = here("load", "list.csv")

    assert (loaded.returncode, loaded.stdout) == (0, "")
    assert "warning" not in loaded.stderr
    assert facts.rows(versions) == before
    assert here("load", "--undo").stderr.startswith("certjob load: no load is recorded")


def test_number_that_a_file_cannot_have_adds_no_second_mentor(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """An app wrote it. A second mentor would get each mail again."""
    hlf = facts.organisation()
    for member_no in ("M  1", "M2 ", "'-10", "M4"):
        facts.certified_mentor(hlf, today() + timedelta(days=300), member_no=member_no, email=None, contact_id=None)
    (tmp_path / "list.csv").write_text(here("list", "--everyone", "--csv").stdout)

    loaded = here("load", "list.csv")

    assert facts.rows("SELECT count(*) FROM mentors") == [(4,)]
    assert loaded.returncode == 3
    assert loaded.stderr.count("member_no: the mentor with this mentor_id has another number") == 3


def test_departure_at_an_impossible_time_stays_one(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """The app can write times that Python cannot represent."""
    organisation = facts.organisation()
    for number, left_at in (("M1", "-infinity"), ("M2", "0044-03-15 BC")):
        facts.insert("mentors", organisation_id=organisation, member_no=number, left_at=left_at)
    rows = export(here)
    (tmp_path / "list.csv").write_text(here("list", "--everyone", "--csv").stdout)

    assert here("load", "list.csv").returncode == 0

    assert [row["left_on"] for row in rows] == ["0001-01-01"] * 2
    assert facts.rows("SELECT count(left_at) FROM mentors") == [(2,)]


def test_two_people_with_one_number_are_seen_and_undone(here: Certjob, facts: Facts, load: LoadRows) -> None:
    """In the trial they were merged, and an uncertified mentor was visible. The other lines of the file are loaded."""
    enter_mentors(facts)
    rows, before = export(here), all_facts(facts)
    new = {name: str(today() + timedelta(days=days)) for name, days in (("issued_on", 0), ("expires_on", 700))}
    kari = rows[0] | new | {"full_name": "Ola Hansen", "email": "ola@example.org", "dynamics_contact_id": str(uuid4())}
    both = [rows[1] | new, rows[1] | new | {"full_name": "Rada Ali", "email": "rada@example.org"}]

    loaded = load([kari, *both, rows[2] | new])

    said = loaded.stderr.splitlines()
    assert (loaded.returncode, said[-1]) == (3, "certjob load: next run: 1 reinstated and shown (M02 Kari 2)")
    assert said[0].startswith(
        "certjob load: line 2 skipped: M00: member_no: the mentor with this number has another name"
    )
    assert [line.split(": ")[1:3] for line in said[1:3]] == [[f"line {number} skipped", "M01"] for number in (3, 4)]
    assert here("load", "--undo").returncode == 0
    assert all_facts(facts) == before


def test_days_shifted_by_one_row_are_seen_and_undone(here: Certjob, facts: Facts, load: LoadRows) -> None:
    """Each mentor gets the certificate of the next row. In the trial, seven expired mentors were shown."""
    enter_mentors(facts)
    rows, before = export(here), all_facts(facts)
    days = [{name: row[name] for name in ("issued_on", "expires_on")} for row in rows]
    shifted = [row | days[(place + 1) % len(rows)] for place, row in enumerate(rows)]

    planned, loaded = load(shifted, "--dry-run"), load(shifted)

    doubt, foreseen = loaded.stderr.splitlines()[:2]
    example = f"M00 likeperson from {days[1]['issued_on']}"
    assert doubt.startswith(
        f"certjob load: 20 new certificates of known mentors began more than 45 days ago ({example}"
    )
    assert "reinstated and shown (M02 Kari 2)" in foreseen
    assert planned.stderr.splitlines()[:2] == [doubt, foreseen]

    undone = here("load", "--undo")

    assert (undone.returncode, undone.stderr.splitlines()[-1]) == (0, "certjob load: next run: no change")
    assert all_facts(facts) == before


def test_shifted_last_days_are_seen_and_undone(here: Certjob, facts: Facts, load: LoadRows) -> None:
    enter_mentors(facts)
    rows, before = export(here), all_facts(facts)
    shifted = [row | {"expires_on": following["expires_on"]} for row, following in pairwise(rows)]

    loaded = load(shifted)

    assert "; 16 later last day (" in loaded.stderr
    assert here("load", "--undo").returncode == 0
    assert all_facts(facts) == before
    assert night(facts.connection, today()).review.paused == 0


@pytest.mark.parametrize("seed", range(3))
def test_undo_restores_every_value(here: Certjob, facts: Facts, load: LoadRows, seed: int) -> None:
    """Names, addresses, languages, contacts, dates, revocations and departures, and added rows, with a run between."""
    random_programme(facts, seed=seed, mentors=40)
    wrong = []
    before = all_facts(facts)
    for row in export(here):
        if not row["kind"]:
            row |= {"kind": "added", "issued_on": "2025-01-01", "expires_on": "2026-01-01"}
        for name, value in (
            ("full_name", "Wrong"),
            ("email", "wrong@example.org"),
            ("locale", "en"),
            ("left_on", str(today())),
            ("revoked_on", str(today())),
            ("expires_on", "2040-01-01"),
        ):
            is_wrong = random.Random(f"{seed} {row['member_no']} {name}").random() < 0.5
            row[name] = value if is_wrong else row[name]
        wrong.append(row)
    wrong.append(
        {"organisation": "lhl", "member_no": "NEW", "kind": "k", "issued_on": "2025-01-01", "expires_on": "2040-01-01"}
    )
    assert load(wrong).returncode == 0
    assert all_facts(facts) != before
    if seed:
        night(facts.connection, today(), allow={"hlf": 99, "nhf": 99, "lhl": 99})

    undone = here("load", "--undo")

    assert "not undone" not in undone.stderr, undone.stderr
    assert undone.returncode == 0
    assert all_facts(facts) == before


def test_row_that_was_changed_since_stays_and_is_named(here: Certjob, facts: Facts, load: LoadRows) -> None:
    """Someone has corrected one certificate by hand. The dry run says so as well, and the second undo is rejected."""
    enter_mentors(facts, mentors=6)
    rows = export(here)
    late = str(today() + timedelta(days=900))
    load([row | {"expires_on": late} for row in rows[3:]])
    facts.connection.execute(
        "UPDATE certificates SET expires_on = %s FROM mentors AS m WHERE m.id = mentor_id AND member_no = 'M04'",
        (day := today() + timedelta(days=5),),
    )

    planned, undone, again = here("load", "--undo", "--dry-run"), here("load", "--undo"), here("load", "--undo")

    kept = f"certjob load: not undone: hlf M04 Kari 4: likeperson of {rows[4]['issued_on']}, changed since"
    assert planned.stderr.splitlines()[0] == undone.stderr.splitlines()[0] == kept
    assert f"hlf,M03,likeperson,{rows[3]['issued_on']},expires_on,{rows[3]['expires_on']},{late}" in planned.stdout
    assert (planned.returncode, undone.returncode, again.returncode) == (3, 3, 2)
    assert [row["expires_on"] for row in export(here)][3:] == sorted(
        [str(day), rows[3]["expires_on"], rows[5]["expires_on"]]
    )
    assert "has been undone already, by cli:" in again.stderr


def test_undo_lifts_the_pause_because_of_a_certificate_that_it_deletes(
    here: Certjob, facts: Facts, load: LoadRows
) -> None:
    """The file had an ended certificate of a new kind. An earlier pause stays."""
    enter_mentors(facts, mentors=6)
    rows = export(here)
    ended = {"kind": "kurs", "issued_on": "2025-01-01", "expires_on": "2025-06-01"}
    load([row | ended for row in rows])
    assert night(facts.connection, today()).review.paused == 3

    here("load", "--undo")
    night(facts.connection, today())

    paused = "SELECT member_no FROM mentors AS m JOIN mentor_pauses AS p ON p.mentor_id = m.id WHERE lifted_at IS NULL"
    assert facts.rows(f"{paused} ORDER BY 1") == [("M00",), ("M01",), ("M02",)]


def test_added_mentor_is_deleted_unless_certjob_has_shown_or_mailed_them(
    here: Certjob, facts: Facts, load: LoadRows
) -> None:
    """Otherwise the mentor stays without a certificate, and the next run hides them. Earlier loads stay."""
    facts.organisation(thresholds=[30])
    days = {"organisation": "hlf", "kind": "likeperson", "issued_on": str(today() - timedelta(days=9))}
    soon, late = str(today() + timedelta(days=20)), str(today() + timedelta(days=200))
    people = [
        {"member_no": "shown", "dynamics_contact_id": str(uuid4()), "expires_on": late},
        {"member_no": "mailed", "email": "m@example.org", "expires_on": soon},
        {"member_no": "nothing", "expires_on": late},
    ]
    bare, kept = ({"member_no": name, "expires_on": late} | days for name in ("bare", "kept"))
    load([bare, kept])
    load([kept | {"full_name": "Kari"}])
    facts.connection.execute("DELETE FROM certificates USING mentors m WHERE m.id = mentor_id AND m.member_no = 'bare'")
    load([person | days for person in people])
    planned = json.loads(here("load", "--undo", "--dry-run", "--json").stdout)
    night(facts.connection, today(), channel=CollectingChannel(), deliver=True)

    undone = json.loads(here("load", "--undo", "--json").stdout)

    why = "has been shown, mailed or changed since"
    assert planned["kept"] == []
    assert [(each["member_no"], each["why"]) for each in undone["kept"]] == [("mailed", why), ("shown", why)]
    stored = facts.rows("SELECT member_no, full_name FROM mentors ORDER BY 1")
    assert stored == [("bare", None), ("kept", "Kari"), ("mailed", None), ("shown", None)]
    assert facts.rows("SELECT FROM certificates") == [()]
    assert [(each["member_no"], each["what"]) for each in undone["next_run"]] == [
        ("mailed", "hidden"),
        ("shown", "hidden"),
    ]
    assert here("load", "--undo").returncode == 2


def test_explain_lists_loads_and_prune_forgets_them_after_90_days(here: Certjob, facts: Facts, load: LoadRows) -> None:
    """Signed, with the values before and after."""
    enter_mentors(facts, mentors=1)
    (row,) = export(here)
    late = str(today() + timedelta(days=900))
    load([row | {"expires_on": late}])
    here("load", "--undo")

    (loaded,) = json.loads(here("explain", "M00", "--json").stdout)["loads"]
    assert loaded["loaded_by"].startswith("cli:")
    assert loaded["undone_by"] == loaded["loaded_by"]
    assert (loaded["what"], loaded["changes"]) == (
        f"likeperson of {row['issued_on']}",
        f"expires_on: {row['expires_on']} → {late}",
    )
    facts.connection.execute("UPDATE loaded_rows SET loaded_at = now() - interval '91 days'")
    here("db", "prune", "--older-than", "3y")
    assert json.loads(here("explain", "M00", "--json").stdout)["loads"] == []


@pytest.mark.parametrize("arguments", [(), ("people.csv", "--undo")])
def test_load_takes_a_file_or_undo(here: Certjob, arguments: tuple[str, ...]) -> None:
    assert here("load", *arguments).returncode == 2
