"""Output and exit code of `certjob load`."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.conftest import Certjob
from tests.support.command_line import Finished, today
from tests.support.facts import Facts
from tests.support.nights import night

HEADER = "organisation;member_no;full_name;email;kind;issued_on;expires_on\n"
GOOD = "hlf;M{0};Kari {0};kari{0}@example.org;likeperson;2024-02-01;2036-02-01\n"

NEW_KIND = "certjob load: hlf: new kind likeperson (1): its end pauses these mentors"
NO_CHANGE = "certjob load: next run: no change"

Load = Callable[..., Finished]


@pytest.fixture
def load(here: Certjob, facts: Facts, tmp_path: Path) -> Load:
    """Load a file of this text into ``hlf``."""
    facts.organisation()

    def load(text: str, *arguments: str) -> Finished:
        (tmp_path / "people.csv").write_text(text)
        return here("load", "people.csv", *arguments)

    return load


def test_load_prints_new_kinds_and_what_the_next_run_does(load: Load) -> None:
    """Also if no one has to act."""
    result, again = load(HEADER + GOOD.format(1)), load(HEADER + GOOD.format(1))

    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [NEW_KIND, NO_CHANGE]
    assert again.stderr.splitlines() == [NO_CHANGE]


def test_load_names_every_problem_and_loads_the_other_mentors(load: Load, facts: Facts) -> None:
    """No name and no address is printed."""
    bad = GOOD.format(2).replace("@", " at ").replace("2024-02-01", "1.2.24")
    result = load(HEADER + GOOD.format(1) + bad + GOOD.format(3).replace("hlf", "nhf"))

    assert result.stderr.splitlines() == [
        "certjob load: line 3 skipped: M2: issued_on: not a date such as 2026-12-31 or 31.12.2026",
        "certjob load: line 3 skipped: M2: email: not a valid e-mail address",
        "certjob load: line 4 skipped: organisation: no such organisation; create it with `certjob organisation set`",
        "certjob load: 2 of 3 rows were skipped, 1 loaded",
        NEW_KIND,
        NO_CHANGE,
    ]
    assert (result.returncode, result.stdout) == (3, "")
    assert facts.rows("SELECT member_no FROM mentors") == [("M1",)]


def test_load_warns_of_an_implausible_date_with_exit_code_0(load: Load, facts: Facts) -> None:
    result = load(HEADER + GOOD.format(1).replace("2036", "2206"))

    said = "before 1950 or more than 15 years ahead; correct it if it is a typing error"
    assert result.stderr.splitlines()[0] == f"certjob load: warning: line 2 loaded: M1: expires_on: {said}"
    assert result.returncode == 0
    assert facts.rows("SELECT expires_on::text FROM certificates") == [("2206-02-01",)]


def test_load_prints_20_lines_of_each_kind_of_problem_and_the_number_of_the_others(load: Load) -> None:
    """A warning about a mentor who is skipped because of another line does not say "loaded"."""
    bad = "".join(GOOD.format(number).replace("@", " at ") for number in range(1, 3001))
    late = "".join(GOOD.format(number).replace("2036", "2206") for number in (2999, 3000, 3001, 3002))
    result = load(HEADER + bad + late)

    lines = result.stderr.splitlines()
    reason = "not a valid e-mail address"
    too_late = "before 1950 or more than 15 years ahead; correct it if it is a typing error"
    assert lines[:20] == [
        f"certjob load: line {1 + number} skipped: M{number}: email: {reason}" for number in range(1, 21)
    ]
    assert lines[20:-2] == [
        f"certjob load: … and 2,980 more skipped: email: {reason}",
        f"certjob load: warning: line 3002 skipped: M2999: expires_on: {too_late}",
        f"certjob load: warning: line 3003 skipped: M3000: expires_on: {too_late}",
        f"certjob load: warning: line 3004 loaded: M3001: expires_on: {too_late}",
        f"certjob load: warning: line 3005 loaded: M3002: expires_on: {too_late}",
        "certjob load: 3,002 of 3,004 rows were skipped, 2 loaded",
    ]
    assert result.returncode == 3


def test_load_warns_of_a_new_kind_that_is_similar_to_a_known_one(load: Load, facts: Facts) -> None:
    """It would count beside the known one. Known kinds, kinds of others, and different names cause no warning."""
    facts.certificate(facts.mentor(facts.organisation("lhl")), date(2030, 1, 1), kind="Likeperson")
    load(HEADER + GOOD.format(1) + GOOD.format(2))

    lines = (
        GOOD.format(1),
        GOOD.format(3).replace("likeperson", "Likeperson"),
        GOOD.format(4).replace("likeperson", "kurs"),
    )
    result = load(HEADER + "".join(lines))
    again = load(HEADER + "".join(lines))

    reason = "'Likeperson' is a new kind, similar to 'likeperson'; correct it if it is a typing error"
    assert result.stderr.splitlines() == [
        f"certjob load: warning: line 3 loaded: M3: kind: {reason}",
        NEW_KIND.replace("likeperson", "Likeperson"),
        NEW_KIND.replace("likeperson", "kurs"),
        NO_CHANGE,
    ]
    assert (result.returncode, again.stderr.splitlines()) == (0, [NO_CHANGE])


def test_load_warns_of_a_revocation_that_misses_its_certificate(load: Load) -> None:
    """With another first day it adds a certificate, and the mentor stays certified. A hit is no reason to warn."""
    load(HEADER + GOOD.format(1) + GOOD.format(2))
    header = "organisation;member_no;kind;issued_on;expires_on;revoked_on\n"
    first_day, last_day = "2024-02-01", "2036-02-01"
    missed = date.fromisoformat(first_day) + timedelta(days=1)

    result = load(f"{header}hlf;M1;likeperson;{missed};{last_day};{today()}\n")
    hit = load(f"{header}hlf;M2;likeperson;{first_day};{last_day};{today()}\n")

    reason = "a new certificate that is already revoked, but another one of this kind is in force"
    assert (result.returncode, result.stderr.splitlines()[0]) == (
        0,
        f"certjob load: warning: line 2 loaded: M1: issued_on: {reason}",
    )
    assert "warning" not in hit.stderr


@pytest.mark.parametrize(("known", "new"), [("M1", "m1"), ("42", "0042"), ("M 7", "M07"), ("M1042", "M 1042")])
def test_load_warns_of_member_numbers_that_are_nearly_the_same(load: Load, known: str, new: str) -> None:
    """They may be one mentor, of the database or of the file, also in the first load."""
    first, twin = (GOOD.format(1).replace("M1", number) for number in (known, new))
    reason = "a new mentor, but another one has this number except for spaces, leading zeros or capitals"

    both = load(HEADER + first + GOOD.format(20) + twin, "--dry-run")
    load(HEADER + first)
    later = load(HEADER + GOOD.format(20) + twin)

    warned = [
        f"certjob load: warning: line {line} loaded: {number}: member_no: {reason}"
        for line, number in ((2, known), (4, new))
    ]
    assert both.stderr.splitlines()[:2] == warned
    assert later.stderr.splitlines() == [warned[1].replace("line 4", "line 3"), NO_CHANGE]


def test_rarer_of_two_new_similar_kinds_is_named(load: Load) -> None:
    """In the first load of an organisation."""
    result = load(HEADER + GOOD.format(1).replace("likeperson", "Likperson") + GOOD.format(2) + GOOD.format(3))

    assert "line 2 loaded: M1: kind: 'Likperson' is a new kind, similar to 'likeperson'" in result.stderr


def test_load_foresees_what_the_next_run_does_with_everyone(load: Load, facts: Facts) -> None:
    """With mentors who are not in the file, and in a dry run, too. The next run does the same."""
    past = str(today() - timedelta(days=1))
    load(HEADER + "".join(GOOD.format(number) for number in range(1, 7)))
    night(facts.connection, today())
    load(HEADER + GOOD.format(1).replace("2036-02-01", past) + GOOD.format(2).replace("2036-02-01", past))
    night(facts.connection, today())
    facts.connection.execute(
        "UPDATE certificates SET expires_on = '2025-01-01'"
        " WHERE mentor_id = (SELECT id FROM mentors WHERE member_no = 'M3')"
    )
    text = HEADER + GOOD.format(1) + GOOD.format(4).replace("2036-02-01", past)

    planned, loaded = load(text, "--dry-run"), load(text)

    said = "certjob load: next run: 2 paused (M4 Kari 4, M3 Kari 3); 1 reinstated and shown (M1 Kari 1); "
    said += "1 reminded (M4 Kari 4)"
    assert planned.stderr.splitlines() == [said, "certjob load: --dry-run: nothing was changed"]
    assert loaded.stderr.splitlines() == [said]
    done = night(facts.connection, today()).to_document()
    assert (done["mentors"]["paused"], done["mentors"]["reinstated"], done["reminders"]["queued"]) == (2, 1, 1)


def test_load_announces_held_renewals_with_the_command_that_permits_them(load: Load, facts: Facts) -> None:
    """24 mentors are paused, and a file with their old certificates would reinstate all of them."""
    file = HEADER + "".join(GOOD.format(number) for number in range(24))
    load(file.replace("2036", "2025"))
    night(facts.connection, today(), allow={"hlf": 24})

    (foreseen, held) = load(file).stderr.splitlines()

    first = ", ".join(f"M{number} Kari {number}" for number in (0, 1, *range(10, 18)))
    assert foreseen == f"certjob load: next run: 24 reinstated and shown, held back ({first}, …)"
    assert held.startswith("certjob load: the next run will hold back hlf: 24 mentors are held back (24 returns)")
    assert held.endswith("then `certjob run --allow hlf=24`")


def test_dry_run_says_how_many_mentors_the_next_run_would_pause(load: Load, facts: Facts) -> None:
    """21 valid certificates are moved into the past."""
    valid = "".join(GOOD.format(number) for number in range(21))
    load(HEADER + valid)
    facts.connection.execute("UPDATE mentors SET review_on = '2036-02-02'")

    result = load(HEADER + valid.replace("2036", "2025"), "--dry-run")

    first, held, last = result.stderr.splitlines()
    assert first.startswith("certjob load: next run: 21 paused, held back (M0 Kari 0, M1 Kari 1, M10 Kari 10, ")
    assert held.startswith("certjob load: the next run will hold back hlf: 21 mentors are held back (21 ended)")
    assert held.endswith("then `certjob run --allow hlf=21`")
    assert last == "certjob load: --dry-run: nothing was changed"
    mentors = sorted(f"hlf,M{number}" for number in range(21))
    assert result.stdout.splitlines() == [
        "rows: 21",
        "certificates changed: 21",
        "organisation,member_no,kind,issued_on,what,old,new",
        *(f"{mentor},likeperson,2024-02-01,expires_on,2036-02-01,2025-02-01" for mentor in mentors),
        "what,organisation,member_no,full_name,held",
        *(f"paused,{mentor},Kari {mentor[5:]},held back" for mentor in mentors),
    ]
    assert result.returncode == 0
    assert facts.rows("SELECT FROM certificates WHERE expires_on = '2025-02-01'") == []


def test_dry_run_names_each_change_from_old_to_new(load: Load, facts: Facts) -> None:
    """New mentors, certificates and kinds, too. --json has the same changes, and the database stays unchanged."""
    load(HEADER + GOOD.format(1))
    night(facts.connection, today())
    before = facts.rows("SELECT to_jsonb(m) FROM mentors AS m")
    contact, revoked_on, last_day = "0b6c0f5e-52a5-4f0e-8f0c-0d5a3c9c7a11", str(today()), today() + timedelta(days=30)
    text = (
        "organisation,member_no,full_name,email,locale,dynamics_contact_id,kind,issued_on,expires_on,revoked_on\n"
        f"hlf,M1,Kari Nord,k@example.org,nn,{contact},likeperson,2024-02-01,2036-02-02,{revoked_on}\n"
        f"hlf,M2,Ola,ola@example.org,,,kurs,2024-02-01,{last_day},\n"
    )

    printed = load(text, "--dry-run").stdout.splitlines()
    document = json.loads(load(text, "--dry-run", "--json").stdout)

    assert printed == [
        "rows: 2",
        "mentors added: 1",
        "mentors changed: 1",
        "certificates added: 1",
        "certificates changed: 1",
        "organisation,member_no,kind,issued_on,what,old,new",
        f"hlf,M2,kurs,2024-02-01,certificate,,{last_day}",
        f"hlf,M1,,,dynamics_contact_id,,{contact}",
        "hlf,M1,,,email,kari1@example.org,k@example.org",
        "hlf,M1,likeperson,2024-02-01,expires_on,2036-02-01,2036-02-02",
        "hlf,M1,,,full_name,Kari 1,Kari Nord",
        "hlf,M1,,,locale,nb,nn",
        "hlf,M2,,,mentor,,Ola",
        f"hlf,M1,likeperson,2024-02-01,revoked_on,,{revoked_on}",
        "what,organisation,member_no,full_name,held",
        "paused,hlf,M1,Kari Nord,",
        "reminded,hlf,M2,Ola,",
    ]
    assert [(each["member_no"], each["what"], each["old"], each["new"]) for each in document["changes"]][3:5] == [
        ("M1", "expires_on", "2036-02-01", "2036-02-02"),
        ("M1", "full_name", "Kari 1", "Kari Nord"),
    ]
    assert [(each["member_no"], each["what"], each["held"]) for each in document["next_run"]] == [
        ("M1", "paused", False),
        ("M2", "reminded", False),
    ]
    assert document["doubts"] == ["hlf: new kind kurs (1): its end pauses these mentors"]
    assert document["new_kinds"] == [{"organisation": "hlf", "kind": "kurs", "certificates": 1}]
    assert facts.rows("SELECT to_jsonb(m) FROM mentors AS m") == before


@pytest.mark.parametrize(("path", "reason"), [("no-such.csv", "No such file or directory"), (".", "Is a directory")])
def test_load_rejects_a_file_that_cannot_be_read(load: Load, here: Certjob, path: str, reason: str) -> None:
    result = here("load", path)

    assert result.stderr == f"certjob load: {path} cannot be read ({reason}); check the path and its permissions\n"
    assert result.returncode == 2
