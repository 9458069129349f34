"""What the commands print: one JSON document, nothing on success, tables on a terminal, whole lines off it."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certjob import __version__
from tests.cli.conftest import LONG_AGO, SOON, VISIBLE
from tests.conftest import Certjob, installed_command
from tests.support.command_line import HOSTILE, Finished, all_commands, on_terminal, started, without_escapes
from tests.support.facts import Facts
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer


def document_of(result: Finished) -> Any:
    """Stdout, which holds one JSON document and nothing else."""
    return json.loads(result.stdout)


def pending_hide(facts: Facts, *, wanted_at: str = "2026-01-15 23:30+00", **mentor: Any) -> None:
    """A mentor whose hide has waited for long, so that it is an alert."""
    mentor_id = facts.mentor(facts.organisation(f"hlf{len(facts.rows('SELECT FROM organisations'))}"), **mentor)
    times = {"wanted_at": wanted_at, "next_attempt_at": datetime.now(UTC) + timedelta(hours=20)}
    facts.connection.execute("UPDATE mentors SET portal_visible = false WHERE id = %s", (mentor_id,))
    facts.insert("portal_sync_events", mentor_id=mentor_id, visible=False, **times)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("certjob al", ["alerts"]),
        ("certjob organisation s", ["set", "show"]),
        ("certjob list --stat", ["--status"]),
        ("certjob organisation set hlf --portal ", ["dynamics", "none"]),
    ],
)
def test_shell_completes_commands_options_and_values(
    environment: dict[str, str], typed: str, completed: list[str]
) -> None:
    """The installed command answers as bash asks it."""
    asked = {"_CERTJOB_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}

    answer = subprocess.run(
        [installed_command()], env=environment | asked, capture_output=True, text=True, timeout=60, check=True
    )

    assert (sorted(answer.stdout.split()), answer.stderr) == (completed, "")


# --json: what is in the documents. Their keys are held by tests/acceptance/test_json.py.


def counts(part: dict[str, int]) -> dict[str, int]:
    """What is not 0."""
    return {name: number for name, number in part.items() if number}


def test_the_documents_of_a_night_that_needs_a_person(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Exit 3, ``attention``, and the figures that say why; the delivery after it says so only once."""
    organisation_id = facts.organisation()
    facts.certified_mentor(organisation_id, LONG_AGO, member_no="M1")
    facts.certified_mentor(organisation_id, SOON)
    facts.mentor(organisation_id, contact_id=None)
    portal.default = error(404, "contact_not_found")

    results = [here(*command.split(), "--json") for command in ("run", "alerts", "deliver", "resync M1")]

    assert [result.returncode for result in results] == [3, 3, 0, 3]
    run, alerts, _, resync = map(document_of, results)
    assert run["outcome"] == alerts["outcome"] == resync["outcome"] == "attention"
    assert counts(run["mentors"]) == {"reviewed": 3, "paused": 1, "without_certificate": 1}
    assert counts(run["certificates"]) == {"expiring": 1, "expired": 1}
    assert counts(run["reminders"]) == {"queued": 1, "sent": 1}
    assert counts(run["portal"]) == {"queued": 1, "failed": 1, "blocked": 1}
    step = "check the contact ID in the app and the contact in Dynamics, then run the same command again"
    assert (resync["error"]["code"], resync["error"]["next_step"]) == ("dynamics_sync", step)


def test_the_documents_of_the_schema(here: Certjob, empty_database_url: str) -> None:
    """Pending: no command works and `check` says so. Migrated: each migration, and nothing the second time."""
    commands = ("check", "run", "db migrate", "db migrate")

    results = [here(*command.split(), "--json", CERTJOB_DATABASE_URL=empty_database_url) for command in commands]

    assert [result.returncode for result in results] == [2, 2, 0, 0]
    before, refused, migrated, again = map(document_of, results)
    schema = next(each for each in before["checks"] if each["check"] == "schema")
    assert (schema["verdict"], schema["next_step"]) == ("fail", "run `certjob db migrate`")
    assert refused["error"]["code"] == "schema"
    assert (migrated["applied"][0], again) == ("0001_facts", {"outcome": "ok", "applied": []})


def test_every_option_of_an_organisation_arrives(here: Certjob) -> None:
    """What is set is shown; the same again changes nothing."""
    options = ["--name", "HLF Norge", "--portal", "dynamics", "--thresholds", "30,7", "--optional-kind", "kurs"]
    options += ["--coordinator", "Kari <kari@hlf.example> nn", "--contact-email", "post@hlf.example"]
    options += ["--contact-phone", "22 63", "--renewal-url", "https://hlf.example", "--sender", "HLF <x@hlf.example>"]

    first, again = (document_of(here("organisation", "set", "hlf", *options, "--json")) for _ in range(2))
    shown = document_of(here("organisation", "show", "hlf", "--json"))

    assert first == {"outcome": "ok", "organisation": "hlf", "created": True, "changed": True, "open_hides": 0}
    assert (again["created"], again["changed"]) == (False, False)
    (coordinator,) = shown.pop("coordinators")
    assert (coordinator["full_name"], coordinator["email"], coordinator["locale"]) == ("Kari", "kari@hlf.example", "nn")
    contact = ["post@hlf.example", "22 63", "https://hlf.example", "HLF <x@hlf.example>"]
    assert [*shown.values()][2:] == ["hlf", "HLF Norge", "dynamics", [30, 7], ["kurs"], *contact, 0]
    lines = [line.partition("\t")[2] for line in here("organisation", "show", "hlf").stdout.splitlines()]
    assert lines[:8] == ["HLF Norge", "dynamics", "30,7", "kurs", *contact]


def test_every_option_of_the_list_arrives(here: Certjob, facts: Facts) -> None:
    """Each names other mentors."""
    organisation_id = facts.organisation()
    facts.certified_mentor(organisation_id, SOON, member_no="contact", contact_id=None)
    facts.certified_mentor(organisation_id, SOON, member_no="address", email=None)
    facts.mentor(organisation_id, member_no="certificate")

    for what in ("contact-id", "address", "certificate"):
        rows = document_of(here("list", f"--without-{what}", "--json"))["certificates"]
        assert [row["member_no"] for row in rows] == [what.removesuffix("-id")]


# Quiet and loud.


def test_success_off_a_terminal_is_silent(here: Certjob, facts: Facts) -> None:
    """Not a byte on stdout or stderr, in either form of the log, or cron would write a mail."""
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")
    facts.certified_mentor(facts.organisation("nhf"), SOON)

    for command in ("run", "run -q", "deliver", "resync M1 -q", "db migrate", "alerts"):
        for form in ("text", "json"):
            result = here(*command.split(), CERTJOB_LOG_FORMAT=form)

            assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), command


def test_an_alert_off_a_terminal_is_one_whole_line(certjob: Certjob, facts: Facts) -> None:
    """The sentence of the design, unbroken, whatever is in the name; no colour, though many a build machine forces it.

    The time is that where the programme lives, not the machine's or the server's.
    """
    long_name = "Kari Nordmann " * 20
    pending_hide(facts, full_name=f"{HOSTILE}\n{long_name}")
    pending_hide(facts, wanted_at="2026-07-15 23:30+00")

    result = certjob("alerts", COLUMNS="40", FORCE_COLOR="1", TZ="America/New_York", PGTZ="Asia/Tokyo")
    elsewhere = certjob("alerts", CERTJOB_TIME_ZONE="Pacific/Auckland")

    assert (result.returncode, result.stderr) == (3, "")
    for_all, *lines = result.stdout.splitlines()
    assert for_all.startswith("Not tried for over an hour; what to do: ")
    for line, since in zip(lines, ("2026-01-16 01:30", "2026-07-16 02:30"), strict=True):
        assert (line.startswith(f"{VISIBLE}: "), f", since {since}" in line, line.isprintable()) == (True,) * 3
    assert long_name.strip() in result.stdout
    assert "[red]M[/red]" in result.stdout
    assert "since 2026-01-16 13:30" in elsewhere.stdout


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


def test_alerts_page_needs_no_colour(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """It can be read on every palette; without an alert it still answers."""

    def shown(code: int, **settings: str) -> str:
        returned, text = on_terminal(["alerts"], environment=environment | settings, folder=tmp_path)
        assert returned == code
        return text

    assert without_escapes(shown(0)) == "All clear: nothing needs attention.\n"
    pending_hide(facts, full_name=HOSTILE)
    page, plain = shown(3), shown(3, NO_COLOR="1")

    assert (COLOUR.search(page), COLOUR.search(plain)) == (None, None)
    assert without_escapes(page) == without_escapes(plain)


def test_a_reader_that_went_away_does_not_hide_the_outcome(
    environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """``certjob alerts | head`` is nobody's mistake: no complaint, the exit code as ever."""
    for number in range(100):
        pending_hide(facts, member_no=f"M{number}")
    for command in (["alerts"], ["run", "--json"]):
        reading, writing = os.pipe()
        os.close(reading)
        with started(*command, environment=environment, folder=tmp_path, stdout=writing) as child:
            os.close(writing)
            result = child.finish()

        assert result.returncode == 3
        assert [line for line in result.stderr.splitlines() if "see `certjob alerts`" not in line] == []


def test_closed_streams_do_not_end_the_night(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """Some supervisors start their jobs so."""
    command = ["/bin/sh", "-c", 'exec "$0" run --json >&- 2>&-', str(installed_command())]

    assert subprocess.run(command, env=environment, cwd=tmp_path, check=False).returncode == 0
    assert facts.rows("SELECT outcome FROM job_runs") == [("ok",)]


# Help, and failures of every command.


EVERYTHING = {tuple(name.split()[1:]): command for name, command in all_commands()}


@pytest.mark.parametrize("words", EVERYTHING, ids=" ".join)
def test_help_describes_every_option_in_80_columns(anywhere: Certjob, words: tuple[str, ...]) -> None:
    """Commands, arguments and options have a text; a terminal need not break a line."""
    command = EVERYTHING[words]

    result = anywhere(*words, "--help")

    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert all(each.help for each in (command, *command.params))


NEEDED = {"resync": "M1", "preview": "M1", "explain": "M1", "set": "hlf", "show": "hlf", "load": "x.csv"}
NEEDED |= {"acknowledge": "hlf:held:pauses", "prune": "--older-than=3y"}


WITH_SETTINGS = [words for words, command in EVERYTHING.items() if "env_file" in {each.name for each in command.params}]


@pytest.mark.parametrize("words", WITH_SETTINGS)
def test_a_failure_is_one_line_and_one_document_whatever_the_command(anywhere: Certjob, words: tuple[str, ...]) -> None:
    """The same text in both; a file of settings that is not there is refused by its name, before anything is done."""
    command = [*words, *filter(None, [NEEDED.get(words[-1])]), "--env-file", "nowhere.env"]

    text, document = anywhere(*command), anywhere(*command, "--json")

    why = "the settings file nowhere.env cannot be read: No such file or directory"
    step = "correct --env-file or CERTJOB_ENV_FILE"
    code = 75 if words == ("bounces",) else 2
    assert (text.returncode, document.returncode) == (code, code)
    if words == ("check",):  # it goes on
        assert why in text.stdout
        return
    error = {"code": "configuration", "message": why, "next_step": step}
    assert document_of(document) == {"outcome": "failed", "error": error}
    said = f"certjob {' '.join(words)}: {why}; {step}\n"
    assert (text.stderr, document.stderr, text.stdout) == (said, said, "")


def test_a_file_of_settings_is_read_where_it_is_named_and_no_other(
    anywhere: Certjob, database_url: str, tmp_path: Path
) -> None:
    """A ``.env`` in the folder where it happens to be started is somebody else's."""
    (tmp_path / ".env").write_text(f"CERTJOB_DATABASE_URL={database_url}\n")
    asked_for = tmp_path / "certjob.env"
    asked_for.write_text(f"CERTJOB_DATABASE_URL='{database_url}'\n")

    unasked = anywhere("organisation", "list")
    by_option = anywhere("organisation", "list", "--env-file", "certjob.env")
    by_variable = anywhere("organisation", "list", CERTJOB_ENV_FILE=str(asked_for))

    assert [result.returncode for result in (unasked, by_option, by_variable)] == [2, 0, 0]
    assert "CERTJOB_DATABASE_URL is not set" in unasked.stderr


def test_python_runs_it_as_a_module_and_its_help_loads_none_of_the_heavy_libraries(
    bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """``python -m certjob``, with the same exit codes; a glance, such as the version, costs no database driver."""

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=bare_environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    glance = python("-X", "importtime", "-m", "certjob", "--help")
    version, nothing = python("-m", "certjob", "--version"), python("-m", "certjob", "run")

    loaded = {line.rpartition("|")[2].strip() for line in glance.stderr.splitlines()}
    assert (glance.returncode, "typer" in loaded) == (0, True)
    assert not loaded & {"psycopg", "httpx", "jinja2", "pydantic", "babel", "backoff", "rich.table"}
    assert version.stdout == f"certjob {__version__}\n"
    assert (nothing.returncode, nothing.stderr.partition(";")[0]) == (2, "certjob run: CERTJOB_DATABASE_URL is not set")
