"""`certjob load` as an operator meets it: bad rows by column and reason, and a file of them to correct."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from certjob.facts import roster
from tests.conftest import Certjob
from tests.support.command_line import Finished
from tests.support.facts import Facts

COLUMNS = ["organisation", "member_no", "full_name", "email", "kind", "issued_on", "expires_on"]
HEADER = ";".join(COLUMNS) + "\n"
GOOD = "hlf;M{0};Kari {0};kari{0}@example.org;likeperson;2024-02-01;2026-02-01\n"


@pytest.fixture
def load(here: Certjob, facts: Facts, tmp_path: Path) -> Certjob:
    """Load a file of this text into ``hlf``; what is wrong with it goes into rejects.csv."""
    facts.organisation()

    def load(text: str, *arguments: str) -> Finished:
        (tmp_path / "people.csv").write_text(text)
        return here("load", "people.csv", "--rejects", "rejects.csv", *arguments)

    return load


@pytest.fixture
def rejects(tmp_path: Path) -> Callable[[], str]:
    return lambda: (tmp_path / "rejects.csv").read_text(encoding="utf-8-sig")


def test_the_help_names_every_column_that_a_file_may_have(here: Certjob) -> None:
    """Whoever has only the command, and a header of somebody else's."""
    (named,) = re.findall(r"Columns: ([^.]*)\.", here("load", "--help").stdout)

    assert set(re.split(r",\s+(?:and as you\s+like\s+)?", named)) == set(roster.COLUMNS)


def test_three_thousand_messy_rows_are_a_few_lines_and_a_file_that_can_be_corrected(
    load: Certjob, rejects: Callable[[], str], facts: Facts
) -> None:
    """Grouped by column and reason; the file has the rows to the letter, and loads once they are corrected."""
    rows = [
        GOOD.format(number)
        .replace("2026-02-01", f"{number % 28 + 1}.2.26" if number % 3 == 0 else "2026-02-01")
        .replace("@", " at " if number % 3 == 1 else "@")
        .replace("hlf", "lhl" if number % 3 == 2 else "hlf")
        for number in range(3_000)
    ]
    first = load("\ufeff" + HEADER + "".join(rows))
    text = rejects()
    facts.organisation("lhl", portal=None)
    second = load(text.replace(".2.26", ".2.2026").replace(" at ", "@"), "--json")

    form = "not a date of the form YYYY-MM-DD or DD.MM.YYYY"
    said = first.stderr.removeprefix("certjob load: people.csv ").splitlines()
    assert (first.returncode, len(said)) == (3, 5)
    assert said[0] == f"lines 2, 5, 8 and 997 more: expires_on: {form}, such as '1.2.26'"
    assert said[1].endswith("organisation: lhl does not exist; create it with `certjob organisation set lhl`")
    assert said[2].endswith("lines 3, 6, 9 and 997 more: email: not a valid e-mail address")
    assert said[3] == "certjob load: 2,000 of 3,000 rows were rejected; the others were loaded"
    assert said[4] == "certjob load: 1,000 of 3,000 rows were loaded without the cells that are not valid"
    assert text.splitlines()[:3] == [
        '"reason";' + HEADER.strip(),
        f"\"line 2: expires_on: {form}: '1.2.26'\";" + rows[0].strip(),
        '"line 3: email: not a valid e-mail address";' + rows[1].strip(),
    ]
    assert (second.returncode, second.stderr, json.loads(second.stdout)["rows"]) == (0, "", 3_000)
    assert facts.rows("SELECT count(*), count(DISTINCT email) FROM mentors") == [(3_000, 3_000)]


def test_more_reasons_than_twenty_are_counted(load: Certjob) -> None:
    """A shifted file can have as many reasons as rows. What is loaded as it is stands in no file of rejects."""
    rows = [GOOD.format(number).replace("hlf", f"org{number}") for number in range(3_000)]
    result = load(HEADER + "".join(rows) + GOOD.format("").replace("2026", "2206"))

    lines = result.stderr.splitlines()
    assert (result.returncode, len(lines)) == (3, 23)
    assert "before 1950" in lines[20]
    assert lines[21] == "certjob load: … and 2,980 more; rejects.csv has all of them"


def test_a_rejects_file_that_is_loaded_again_has_each_reason_once(load: Certjob, rejects: Callable[[], str]) -> None:
    """The reason of the earlier load goes, also when a spreadsheet has written the file anew."""
    load(HEADER + GOOD.format(1).replace("likeperson", "") + 'hlf;M2;"stray\n')
    load(rejects().replace('"reason"', "Reason"))

    header, first, second = csv.reader(rejects().splitlines(), delimiter=";")
    assert header == ["reason", *COLUMNS]
    assert (first[0], first[1:4]) == ("line 2: kind: empty", ["hlf", "M1", "Kari 1"])
    assert (second[0].startswith("line 3: (line): "), second[1:3]) == (True, ["hlf", "M2"])


def test_a_warning_rejects_nothing_and_a_strict_load_counts_rows_that_would_lose_a_cell_as_bad(
    load: Certjob, rejects: Callable[[], str], facts: Facts
) -> None:
    """A date that can hardly be is loaded as it is, with exit code 0; all of a strict file, or nothing."""
    result = load(HEADER + GOOD.format(1).replace("2026", "2206"))
    assert result.stderr.startswith("certjob load: warning: people.csv line 2: expires_on: before 1950 or more than 15")
    assert (result.returncode, len(rejects().splitlines())) == (0, 1)
    assert facts.rows("SELECT expires_on::text FROM certificates") == [("2206-02-01",)]

    strict = load(HEADER + GOOD.format(3) + GOOD.format(2).replace("@", ""), "--strict", "--json")
    assert strict.stderr.splitlines()[-1] == "certjob load: 1 of 2 rows are bad; nothing was loaded (--strict)"
    document = json.loads(strict.stdout)
    counts = {name: number for name, number in document.items() if isinstance(number, int) and number}
    assert (strict.returncode, document["outcome"], counts) == (3, "attention", {"rows": 2, "incomplete": 1})
    assert facts.rows("SELECT member_no FROM mentors") == [("M1",)]
