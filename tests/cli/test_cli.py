"""The output of the commands: one JSON document, no output on success, pages on a terminal, plain lines elsewhere."""

import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from certjob import __version__
from tests.cli.conftest import LONG_AGO, SOON, VISIBLE
from tests.conftest import Certjob, installed_command
from tests.support.command_line import SECRET, Finished, all_commands, on_terminal, started, without_escapes
from tests.support.facts import Facts
from tests.support.portal_answers import answer, error
from tests.support.portal_server import PortalServer

ALL_COMMANDS = {tuple(name.split()[1:]): command for name, command in all_commands()}
"""Every command and group of commands, by its words."""


def document_of(result: Finished) -> Any:
    """Return stdout, which is one JSON document."""
    return json.loads(result.stdout)


def pending_hide(facts: Facts, full_name: str = "Kari Nordmann") -> None:
    """Add a mentor with a hide that has waited long enough to be an alert."""
    mentor_id = facts.mentor(facts.organisation(), full_name=full_name)
    times = {"wanted_at": "2026-01-15 23:30+00", "next_attempt_at": datetime.now(UTC) + timedelta(hours=20)}
    facts.connection.execute("UPDATE mentors SET portal_visible = false")
    facts.insert("portal_sync_events", mentor_id=mentor_id, visible=False, **times)


def test_shell_completes_commands(environment: dict[str, str]) -> None:
    """The installed command answers bash."""
    asked = {"_CERTJOB_COMPLETE": "complete_bash", "COMP_WORDS": "certjob organisation s", "COMP_CWORD": "2"}

    answer = subprocess.run(
        [installed_command()], env=environment | asked, capture_output=True, text=True, timeout=60, check=True
    )

    assert (sorted(answer.stdout.split()), answer.stderr) == (["set", "show"], "")


def test_failed_push_makes_commands_exit_with_3(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """`deliver` does not report the same failure again."""
    organisation_id = facts.organisation()
    facts.certified_mentor(organisation_id, LONG_AGO, member_no="M1")
    facts.certified_mentor(organisation_id, SOON)
    portal.default = error(404, "contact_not_found")

    results = [here(*command.split(), "--json") for command in ("run", "alerts", "deliver", "resync M1")]

    assert [result.returncode for result in results] == [3, 3, 0, 3]
    run, alerts, _, resync = map(document_of, results)
    assert run["outcome"] == alerts["outcome"] == resync["outcome"] == "attention"
    assert (run["mentors"]["reviewed"], run["mentors"]["paused"]) == (2, 1)
    assert (run["reminders"]["sent"], run["portal"]["failed"]) == (1, 1)
    step = "check the contact ID in the app and the contact in Dynamics, then run `certjob resync M1`"
    assert (resync["error"]["code"], resync["error"]["next_step"]) == ("dynamics_sync", step)


def test_migrate_lists_new_migrations(here: Certjob, empty_database_url: str) -> None:
    """Before, every command exits with 2."""
    commands = ("run", "db migrate", "db migrate")

    results = [here(*command.split(), "--json", CERTJOB_DATABASE_URL=empty_database_url) for command in commands]

    assert [result.returncode for result in results] == [2, 0, 0]
    rejected, migrated, again = map(document_of, results)
    assert (rejected["error"]["code"], rejected["error"]["next_step"]) == ("schema", "run `certjob db migrate`")
    assert (migrated["applied"][0], again) == ("0001_facts", {"outcome": "ok", "applied": []})


def test_organisation_show_has_every_option_of_set(here: Certjob) -> None:
    """Setting the same values again changes no row."""
    options = ["--name", "HLF Norge", "--portal", "dynamics", "--thresholds", "30,7", "--optional-kind", "kurs"]
    options += ["--coordinator", "Kari <kari@hlf.example> nn", "--contact-email", "post@hlf.example"]
    options += ["--contact-phone", "22 63", "--renewal-url", "https://hlf.example", "--sender", "HLF <x@hlf.example>"]

    first, again = (document_of(here("organisation", "set", "hlf", *options, "--json")) for _ in range(2))
    (shown,) = document_of(here("organisation", "show", "hlf", "--json"))["organisations"]

    about = {"outcome": "ok", "organisation": "hlf", "created": True, "changes": first["changes"]}
    assert first == about | {"open_hides": 0, "hidden_by_hand": 0, "coming_reminders": 0}
    assert first["changes"][1] == {"option": "thresholds", "old": "60,30,14,7,1,-1", "new": "30,7"}
    assert (again["created"], again["changes"]) == (False, [])
    (coordinator,) = shown.pop("coordinators")
    assert (coordinator["full_name"], coordinator["email"], coordinator["locale"]) == ("Kari", "kari@hlf.example", "nn")
    contact = ["post@hlf.example", "22 63", "https://hlf.example", "HLF <x@hlf.example>"]
    assert [*shown.values()][1:] == ["hlf", "HLF Norge", "dynamics", [30, 7], ["kurs"], *contact, 0]


def test_success_prints_no_output(here: Certjob, facts: Facts) -> None:
    """Otherwise cron would send a mail."""
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")

    for command in ("run", "deliver", "resync M1 -q", "reconcile", "db migrate", "alerts"):
        result = here(*command.split())

        assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), command


def test_alert_is_one_plain_line_without_a_terminal(certjob: Certjob, facts: Facts) -> None:
    """It is not wrapped or coloured, even if a build machine forces colours. Its time is in CERTJOB_TIME_ZONE."""
    pending_hide(facts, "Kari Nordmann " * 20)

    result = certjob("alerts", COLUMNS="40", FORCE_COLOR="1", TZ="America/New_York", PGTZ="Asia/Tokyo")

    assert (result.returncode, result.stderr) == (3, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith(f"{VISIBLE}: ")
    assert ", since 2026-01-16 01:30: Not tried for over an hour; what to do: " in line
    assert line.isprintable()


def test_reader_that_ends_early_does_not_change_the_exit_code(
    environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """``certjob alerts | head`` prints no error."""
    pending_hide(facts)
    reading, writing = os.pipe()
    os.close(reading)
    with started("alerts", environment=environment, folder=tmp_path, stdout=writing) as child:
        os.close(writing)
        result = child.finish()

    assert (result.returncode, result.stderr) == (3, "")


def test_closed_streams_do_not_stop_a_run(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """Some supervisors start jobs without stdout and stderr."""
    command = ["/bin/sh", "-c", 'exec "$0" run --json >&- 2>&-', str(installed_command())]

    assert subprocess.run(command, env=environment, cwd=tmp_path, check=False).returncode == 0
    assert facts.rows("SELECT outcome FROM job_runs") == [("ok",)]


@pytest.mark.parametrize("words", ALL_COMMANDS, ids=" ".join)
def test_help_describes_every_option_in_80_columns(anywhere: Certjob, words: tuple[str, ...]) -> None:
    """Commands, arguments and options have a text."""
    command = ALL_COMMANDS[words]

    result = anywhere(*words, "--help")

    assert (result.returncode, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert all(each.help for each in (command, *command.params))
    assert not any("[" in each.help for each in command.params), "Rich would read markup, and omit it"


NEEDED = {"resync": "M1", "preview": "M1", "explain": "M1", "set": "hlf", "show": "hlf", "load": "x.csv"}
NEEDED |= {"acknowledge": "hlf:x --because=import --until=2030-01-01", "prune": "--older-than=3y"}
NEEDED |= {"pause": "M1 --because=complaint", "unpause": "M1"}
WITH_SETTINGS = [
    words
    for words, command in ALL_COMMANDS.items()
    if words != ("edge-function",) and "env_file" in {each.name for each in command.params}
]


@pytest.mark.parametrize("words", WITH_SETTINGS, ids=" ".join)
def test_failure_is_one_line_and_one_document(anywhere: Certjob, words: tuple[str, ...]) -> None:
    """Every command rejects a missing file of settings with the same text in both. `check` continues."""
    command = [*words, *NEEDED.get(words[-1], "").split(), "--env-file", "missing.env"]
    why = "the settings file missing.env cannot be read: No such file or directory"
    step = "correct --env-file or CERTJOB_ENV_FILE"

    text, document = anywhere(*command), anywhere(*command, "--json")

    code = 75 if words == ("bounces",) else 2
    assert (text.returncode, document.returncode) == (code, code)
    if words == ("check",):
        assert why in text.stdout
        return
    error = {"code": "configuration", "message": why, "next_step": step}
    assert document_of(document) == {"outcome": "failed", "error": error}
    line = f"certjob {' '.join(words)}: {why}; {step}\n"
    assert (text.stderr, document.stderr, text.stdout) == (line, line, "")


def test_settings_file_is_read_only_if_it_is_named(anywhere: Certjob, database_url: str, tmp_path: Path) -> None:
    """A ``.env`` in the current folder may belong to another program."""
    (tmp_path / ".env").write_text(f"CERTJOB_DATABASE_URL={database_url}\n")
    named = tmp_path / "certjob.env"
    named.write_text(f"CERTJOB_DATABASE_URL='{database_url}'\n")

    without = anywhere("organisation", "show")
    by_option = anywhere("organisation", "show", "--env-file", "certjob.env")
    by_variable = anywhere("organisation", "show", CERTJOB_ENV_FILE=str(named))

    assert [result.returncode for result in (without, by_option, by_variable)] == [2, 0, 0]
    assert "CERTJOB_DATABASE_URL is not set" in without.stderr


def test_module_is_the_same_command_and_loads_little(bare_environment: dict[str, str], tmp_path: Path) -> None:
    """``python -m certjob`` has the same exit codes. --help loads no database driver."""

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=bare_environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    help_text = python("-X", "importtime", "-m", "certjob", "--help")
    version, unset = python("-m", "certjob", "--version"), python("-m", "certjob", "run")

    loaded = {line.rpartition("|")[2].strip() for line in help_text.stderr.splitlines()}
    assert (help_text.returncode, "typer" in loaded) == (0, True)
    assert not loaded & {"psycopg", "httpx", "jinja2", "pydantic", "babel", "backoff"}
    assert version.stdout == f"certjob {__version__}\n"
    assert (unset.returncode, unset.stderr.partition(";")[0]) == (2, "certjob run: CERTJOB_DATABASE_URL is not set")


# Logs: warnings only unless -v is given, with ids and without people.


NOT_FOUND = answer(404, {"error": {"code": "contact_not_found", "message": "no contact for Kari Nordmann"}})


def test_log_tells_a_run_by_ids(here: Certjob, facts: Facts) -> None:
    """The first line has the id of the run, as the document and ``job_runs`` have."""
    organisation = facts.organisation()
    hidden = facts.certified_mentor(organisation, LONG_AGO)
    reminded = facts.certified_mentor(organisation, SOON)

    result = here("run", "-v", "--json")

    lines = [line.split(maxsplit=3) for line in result.stderr.splitlines()]
    run_id = json.loads(result.stdout)["run_id"]
    assert facts.rows("SELECT id::text FROM job_runs") == [(run_id,)]
    opened, begun, _, _, pushed, _, sent, _, ended = (text for *_, text in lines)
    assert opened.startswith("certjob ")
    assert begun.startswith(f"the run has begun (run_id={run_id}, command=run, ")
    assert pushed.startswith("push delivered (event_id=")
    assert f"mentor_id={hidden}, visible=False" in pushed
    assert sent.startswith("message sent (kind=reminder, message_key=")
    assert f"mentor_id={reminded}" in sent
    assert ended.startswith("the run has ended (outcome=ok, ")
    for day, clock, level, _ in lines:
        assert datetime.fromisoformat(f"{day} {clock}").utcoffset() == timedelta()
        assert level in ("DEBUG", "INFO")


def test_log_names_no_person(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """With -v, failures have the status and kind of error. The first line has versions, day and time zone."""
    portal.default = NOT_FOUND
    organisation = facts.organisation()
    facts.certified_mentor(organisation, LONG_AGO, member_no="M4711", email="kari@example.org")
    facts.certified_mentor(organisation, SOON, member_no="M4712", full_name="Ola Nordmann", email="no address")
    command = "run", "-v", "--accept-date", str(datetime.now(ZoneInfo("Asia/Tokyo")).date())

    result = here(*command, CERTJOB_TIME_ZONE="Asia/Tokyo")

    assert (result.returncode, len(result.stderr.splitlines()) > 5) == (3, True)
    for secret in ("Nordmann", "kari@", "M4711", "M4712", "no address", SECRET):
        assert secret not in result.stderr
    server = rf"certjob {re.escape(__version__)} on PostgreSQL \S+.*, today is \S+ in Asia/Tokyo"
    assert re.match(rf"\S+ \S+ DEBUG {server}\n\S+ \S+ INFO the run has begun \(.*host=", result.stderr)
    assert " INFO the run has ended (outcome=attention, " in result.stderr
    failed = next(line for line in result.stderr.splitlines() if " DEBUG push failed " in line)
    assert "attempts=1, status=404, cause=PermanentPortalError)" in failed


@pytest.mark.parametrize(
    ("options", "zone", "code", "line"),
    [
        pytest.param(
            "-q", "", 3, "1 mentor may still be visible on the portal: Dynamics has no contact with this", id="alert"
        ),
        pytest.param("-q --dryrun", "", 2, "No such option: --dryrun", id="unknown option"),
        pytest.param("-q", "Mars", 2, "CERTJOB_TIME_ZONE: no such time zone", id="wrong setting"),
    ],
)
def test_reason_of_an_exit_code_is_one_line(
    here: Certjob, facts: Facts, portal: PortalServer, options: str, zone: str, code: int, line: str
) -> None:
    """Stderr has no other line. -q does not suppress it."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    portal.default = NOT_FOUND

    result = here("run", *options.split(), CERTJOB_TIME_ZONE=zone)

    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (code, "", 1)
    assert result.stderr.startswith(f"certjob run: {line}")


def test_terminal_shows_progress_and_totals(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """With -v, the steps are lines of the log; with -q, there is no output."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    def shown(*command: str) -> str:
        code, text = on_terminal(command, environment=environment, folder=tmp_path)
        assert code == 0
        return text

    night = shown("run")
    for phrase in ("Reviewing mentors", "Pushing to the portal", "Sending reminders", "Totals of certjob run on "):
        assert phrase in night
    assert "\x1b[2K" in night, "the progress is removed at the end"
    assert re.search(r"portal: 1 queued, 1 delivered", without_escapes(night))
    assert "INFO Reviewing mentors" in shown("run", "-v")
    assert shown("run", "-q") == ""
