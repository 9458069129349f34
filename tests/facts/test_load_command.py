"""`certjob load` as an operator meets it: bad rows by column and reason, and a file of them to correct."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.command_line import Finished, run_in_process
from tests.support.facts import Facts

HEADER = "organisation;member_no;full_name;email;kind;issued_on;expires_on\n"
GOOD = "hlf;M{0};Kari {0};kari{0}@example.org;likeperson;2024-02-01;2026-02-01\n"

Load = Callable[..., Finished]


@pytest.fixture
def load(bare_environment: dict[str, str], worker_url: str, facts: Facts, tmp_path: Path) -> Load:
    """Run `certjob load` in the folder of the test; the organisation ``hlf`` is there."""
    facts.organisation()
    environment = bare_environment | {"CERTJOB_DATABASE_URL": worker_url}

    def run(*arguments: str) -> Finished:
        return run_in_process("load", *arguments, environment=environment, folder=tmp_path)

    return run


def test_three_thousand_messy_rows_are_a_few_lines_and_a_file_that_can_be_corrected(
    load: Load, facts: Facts, tmp_path: Path
) -> None:
    """Grouped by column and reason; the file has the rows to the letter, and loads once they are corrected."""
    rows = [
        GOOD.format(number)
        .replace("2026-02-01", f"{number % 28 + 1}.2.26" if number % 3 == 0 else "2026-02-01")
        .replace("@", " at " if number % 3 == 1 else "@")
        .replace("hlf", "lhl" if number % 3 == 2 else "hlf")
        for number in range(3_000)
    ]
    (tmp_path / "messy.csv").write_text("\ufeff" + HEADER + "".join(rows), encoding="utf-8")

    first = load("messy.csv", "--rejects", "rejects.csv")
    text = (tmp_path / "rejects.csv").read_text(encoding="utf-8-sig")
    facts.organisation("lhl", portal=None)
    corrected = text.replace(".2.26", ".2.2026").replace(" at ", "@")
    (tmp_path / "corrected.csv").write_text(corrected, encoding="utf-8")
    second = load("corrected.csv", "--rejects", "again.csv", "--json")

    assert first.returncode == 3
    assert first.stderr.splitlines() == [
        "certjob load: messy.csv lines 2, 5, 8 and 997 more: expires_on: "
        "not a date of the form YYYY-MM-DD or DD.MM.YYYY, such as '1.2.26'",
        "certjob load: messy.csv lines 4, 7, 10 and 997 more: organisation: "
        "lhl does not exist; create it with `certjob organisation set lhl`",
        "certjob load: messy.csv lines 3, 6, 9 and 997 more: email: not a valid e-mail address",
        "certjob load: 2,000 of 3,000 rows were rejected; the others were loaded",
        "certjob load: 1,000 of 3,000 rows were loaded without the cells that are not valid",
    ]
    assert text.splitlines()[:3] == [
        '"reason";' + HEADER.strip(),
        "\"line 2: expires_on: not a date of the form YYYY-MM-DD or DD.MM.YYYY: '1.2.26'\";" + rows[0].strip(),
        '"line 3: email: not a valid e-mail address";' + rows[1].strip(),
    ]
    assert (second.returncode, second.stderr) == (0, "")
    assert json.loads(second.stdout)["rows"] == 3_000
    assert facts.rows("SELECT count(*), count(DISTINCT email) FROM mentors") == [(3_000, 3_000)]


def test_more_reasons_than_twenty_are_counted(load: Load, tmp_path: Path) -> None:
    """A shifted file can have as many reasons as rows."""
    rows = "".join(GOOD.format(number).replace("hlf", f"org{number}") for number in range(3_000))
    (tmp_path / "shifted.csv").write_text(HEADER + rows)

    result = load("shifted.csv")

    lines = result.stderr.splitlines()
    assert result.returncode == 3
    assert len(lines) == 22
    assert lines[20:] == [
        "certjob load: … and 2,980 more; --rejects FILE gets all of them",
        "certjob load: all 3,000 rows were rejected; nothing was loaded",
    ]


def test_a_rejects_file_that_is_loaded_again_has_each_reason_once(load: Load, tmp_path: Path) -> None:
    """The reason of the earlier load goes, also when a spreadsheet has written the file anew."""
    (tmp_path / "people.csv").write_text(HEADER + GOOD.format(1).replace("likeperson", "") + 'hlf;M2;"stray\n')
    load("people.csv", "--rejects", "first.csv")
    rewritten = (tmp_path / "first.csv").read_text(encoding="utf-8-sig").replace('"reason"', "Reason")
    (tmp_path / "rewritten.csv").write_text(rewritten)

    load("rewritten.csv", "--rejects", "second.csv")

    with (tmp_path / "second.csv").open(encoding="utf-8-sig", newline="") as stream:
        header, first, second = csv.reader(stream, delimiter=";")
    assert header == ["reason", *HEADER.strip().split(";")]
    assert (first[0], first[1:4]) == ("line 2: kind: empty", ["hlf", "M1", "Kari 1"])
    assert second[0].startswith("line 3: (line): ")
    assert second[1:3] == ["hlf", "M2"]


def test_a_warning_changes_no_exit_code_and_rejects_nothing(load: Load, facts: Facts, tmp_path: Path) -> None:
    """The date is loaded as it is."""
    (tmp_path / "people.csv").write_text(HEADER + GOOD.format(1).replace("2026", "2206"))

    result = load("people.csv", "--rejects", "rejects.csv")

    assert result.returncode == 0
    assert result.stderr == (
        "certjob load: warning: people.csv line 2: expires_on: before 1950 or more than 15 years ahead; "
        "loaded as it is, so correct it if it is a typo: '2206-02-01'\n"
    )
    assert len((tmp_path / "rejects.csv").read_text().splitlines()) == 1
    assert facts.rows("SELECT expires_on::text FROM certificates") == [("2206-02-01",)]


def test_a_strict_load_counts_rows_that_would_lose_a_cell_as_bad(load: Load, facts: Facts, tmp_path: Path) -> None:
    """All of the file, or nothing."""
    (tmp_path / "people.csv").write_text(HEADER + GOOD.format(1) + GOOD.format(2).replace("@", ""))

    result = load("people.csv", "--strict", "--json")

    assert result.returncode == 3
    assert result.stderr.splitlines()[-1] == "certjob load: 1 of 2 rows are bad; nothing was loaded (--strict)"
    assert json.loads(result.stdout) | {"problems": None} == {
        "outcome": "attention",
        "rows": 2,
        "loaded": 0,
        "rejected": 0,
        "incomplete": 1,
        "repeated": 0,
        "mentors_added": 0,
        "mentors_changed": 0,
        "certificates_added": 0,
        "certificates_changed": 0,
        "unchanged": 0,
        "problems": None,
    }
    assert facts.rows("SELECT FROM mentors") == []
