"""On a terminal of 80 columns and more a word stays whole."""

from pathlib import Path

import pytest
from rich.cells import cell_len

from certjob.database import Connection
from tests.support.command_line import on_terminal, run_in_process, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import night

WORDS = {
    "status": {"Last", "runs", "attention", "waits", "hides", "reminders", "digests", "Oldest", "Mentors"},
    "organisation list": {"hlf", "Personforbund", "dynamics", "Thresholds", "Coordinators", "Mentors"},
    "list": {
        "expired",
        "Zebulon",
        "Østenfjellheim-",
        "Kristoffersen",
        "likeperson",
        "kursleder",
        "Personforbund",
    },
    "run --dry-run --allow-earlier-date": {"mentors", "certificates", "reminders", "portal", "pending"},
    "db status": {"0001_facts", "0005_one_call_per_contact", "Applied"},
}


@pytest.fixture
def environment(
    database_url: str, connection: Connection, facts: Facts, bare_environment: dict[str, str]
) -> dict[str, str]:
    """Two organisations with long words, and a night that could not push."""
    for slug in ("hlf", "personforbund"):
        organisation = facts.organisation(slug, optional_kinds=["kursleder"])
        mentor = facts.certified_mentor(organisation, TODAY, full_name="Zebulon Østenfjellheim-Kristoffersen")
        facts.certificate(mentor, TODAY, kind="kursleder")
        connection.execute(
            "INSERT INTO coordinators (organisation_id, email) VALUES (%s, %s)", (organisation, f"k@{slug}.example")
        )
    night(connection)
    return bare_environment | {"CERTJOB_DATABASE_URL": database_url}


def test_a_reason_is_wrapped_between_words_and_in_colour(
    environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """And off a terminal it is one line."""
    for number in range(9):
        facts.mentor(facts.connection.execute("SELECT id FROM organisations").fetchall()[0][0], member_no=f"N{number}")

    _, shown = on_terminal(["explain", "kari nordmann"], environment=environment, folder=tmp_path, columns=60)
    off = run_in_process("explain", "kari nordmann", environment=environment, folder=tmp_path)

    assert shown.startswith("\x1b[1;31mcertjob explain: ")
    assert all(cell_len(line) <= 60 for line in without_escapes(shown).splitlines())
    assert " ".join(without_escapes(shown).split()) == off.stderr.rstrip()
    assert off.stderr.count("\n") == 1


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_no_word_is_broken_and_no_line_too_wide(columns: int, environment: dict[str, str], tmp_path: Path) -> None:
    """Headings and cells alike."""
    for command, words in WORDS.items():
        text = run_in_process(*command.split(), environment=environment, folder=tmp_path, columns=columns).stdout

        assert all(cell_len(line) <= columns for line in text.splitlines()), text
        assert {word for word in words if word.lower() not in text.lower()} == set(), text


def test_no_line_ends_inside_a_command(environment: dict[str, str], tmp_path: Path) -> None:
    """It is there to be copied."""
    arguments = ["organisation", "show", "nope"]

    _, shown = on_terminal(arguments, environment=environment, folder=tmp_path, columns=70)

    assert without_escapes(shown).splitlines()[-1] == "`certjob organisation list`"
