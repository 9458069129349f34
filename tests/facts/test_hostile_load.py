"""Texts that do not mean well, through `certjob load` and the command line into the tables; and very long names."""

import csv
import json
import re
import unicodedata
from datetime import timedelta
from pathlib import Path

import pytest

from certjob.facts.cells import KEY_LIMIT
from tests.support.command_line import Finished, run_in_process, today
from tests.support.facts import Facts
from tests.support.hostile_texts import HOSTILE, assert_harmless

COLUMNS = ["organisation", "member_no", "full_name", "email", "kind", "issued_on", "expires_on"]
LONG = "Kári <b>[red]\x1b[2J " * 10_000
"""200,000 letters, markup and orders to a terminal among them."""


@pytest.fixture
def environment(bare_environment: dict[str, str], worker_url: str, tmp_path: Path) -> dict[str, str]:
    return bare_environment | {
        "CERTJOB_DATABASE_URL": worker_url,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
        "CERTJOB_MAIL_FROM": "post@hlf.example",
    }


def as_stored(text: str) -> str:
    """What the roster makes of a text that it takes: composed letters, single spaces."""
    return unicodedata.normalize("NFC", re.sub(r"[ \t\r\n]+", " ", text.strip()))


@pytest.mark.parametrize("column", ["member_no", "full_name", "kind"])
def test_a_hostile_text_in_a_file_is_stored_to_the_letter_or_refused_by_its_line(
    column: str, environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """Never run, never cut, never half."""
    facts.organisation()
    texts = [hostile.text for hostile in HOSTILE.values()]
    with (tmp_path / "people.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        for number, text in enumerate(texts):
            row = ["hlf", f"M{number}", "Kari", "k@example.org", "likeperson", "2024-01-01", "2026-01-01"]
            row[COLUMNS.index(column)] = text
            writer.writerow(row)

    arguments = ("load", "people.csv", "--rejects", "rejects.csv", "--json")
    result = run_in_process(*arguments, environment=environment, folder=tmp_path)

    table = "certificates" if column == "kind" else "mentors"
    stored = {str(name) for (name,) in facts.rows(f"SELECT {column} FROM {table}") if name is not None}
    with (tmp_path / "rejects.csv").open(encoding="utf-8-sig", newline="") as stream:
        _, *refused = csv.reader(stream)
    counts = json.loads(result.stdout)
    plain = {as_stored(text) for text in texts if text.isascii() and text.isprintable() and len(text) <= KEY_LIMIT}
    assert result.returncode == 3, result
    assert plain <= stored <= set(map(as_stored, texts))
    assert (counts["rows"], counts["rejected"] + counts["incomplete"]) == (len(texts), len(refused))
    assert counts["rejected" if column == "full_name" else "incomplete"] == 0
    assert all(re.search("longer than|control character", row[0]) for row in refused)
    assert not any(re.search("[\x00-\x1f\x7f-\x9f\u202e]", text) for text in stored)
    assert_harmless(result.stderr)


def test_a_hostile_slug_or_name_on_the_command_line_is_refused(
    environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """Exit 2 with a line that no terminal obeys; nothing is made, found or changed."""
    facts.certified_mentor(facts.organisation(), today())

    for text in [hostile.text for hostile in HOSTILE.values()][::3]:
        for arguments in (("organisation", "set", text), ("explain", text)):
            result = run_in_process(*arguments, environment=environment, folder=tmp_path)
            assert (result.returncode, result.stderr.count("\n")) == (2, 1), result
            assert_harmless(result.stderr)

    assert facts.rows("SELECT slug FROM organisations") == [("hlf",)]


def test_a_name_of_a_book_goes_through_a_night_and_everything_that_shows_it(
    environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """From before the bound of the table. One such person must not stop the others' night."""
    organisation_id = facts.organisation()
    facts.connection.execute("SET session_replication_role = replica")
    for name in (LONG, "Ola"):
        facts.certified_mentor(organisation_id, today() + timedelta(days=5), full_name=name)
        facts.certified_mentor(organisation_id, today() - timedelta(days=1), full_name=name)

    def run(*arguments: str, code: int = 0) -> Finished:
        result = run_in_process(*arguments, environment=environment, folder=tmp_path)
        assert result.returncode == code, (arguments, result.stderr[:2_000])
        return result

    night = json.loads(run("run", "--json", code=3).stdout)
    plain = [run("alerts", code=3), run("list"), run("list", "--csv"), run("explain", "M1001"), run("preview", "M1001")]
    document = json.loads(run("alerts", "--json", code=3).stdout)

    assert (night["reminders"]["sent"], night["reminders"]["failed"]) == (4, 0)
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 4
    assert LONG in {alert["full_name"] for alert in document["alerts"]}
    for result in plain:
        assert "\x1b" not in result.stdout
