"""What the commands print: one JSON document, nothing on success, tables on a terminal, whole lines off it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import typer
from rich.cells import cell_len

from certjob import __version__
from certjob.cli.app import app as command_line
from certjob.settings import Settings
from tests.cli.conftest import LONG_AGO, SOON
from tests.conftest import Certjob, installed_command
from tests.support import forked_command
from tests.support.command_line import SECRET, Finished, on_terminal, run_in_process, without_escapes
from tests.support.facts import Facts
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer

SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"
HOSTILE = "[red]M[/red]\x1b[2J\x1b]0;gotcha\x07\u202e:smile:\\"


@pytest.fixture
def environment(environment: dict[str, str], ways_out: dict[str, str]) -> dict[str, str]:
    """A cron line with everything set: the database, a portal over real HTTP, a Maildir."""
    return environment | ways_out


def document_of(result: Finished) -> Any:
    """Stdout, which holds one JSON document and nothing else."""
    return json.loads(result.stdout)


def pending_hide(facts: Facts, *, wanted_at: str = "2026-01-15 23:30+00", **mentor: Any) -> UUID:
    """A mentor whose hide has waited for long, so that it is an alert."""
    mentor_id = facts.mentor(facts.organisation(f"hlf{len(facts.rows('SELECT FROM organisations'))}"), **mentor)
    facts.connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, wanted_at, next_attempt_at)"
        " VALUES (%s, false, %s, now() + interval '20 hours')",
        (mentor_id, wanted_at),
    )
    return mentor_id


# --json: what is in the documents. Their keys are held by tests/acceptance/test_json.py.


def counts(part: dict[str, int]) -> dict[str, int]:
    """What is not 0."""
    return {name: number for name, number in part.items() if number}


def test_the_documents_of_a_plan_and_of_its_run_count_the_same(here: Certjob, facts: Facts) -> None:
    """One mentor paused and hidden, one reminded, one without a certificate; the plan names them and writes nothing."""
    organisation_id = facts.organisation()
    paused = facts.certified_mentor(organisation_id, LONG_AGO)
    reminded = facts.certified_mentor(organisation_id, SOON)
    facts.mentor(organisation_id)

    planned = here("run", "--dry-run", "--json")
    assert facts.rows("SELECT count(*) FROM job_runs") == [(0,)]
    done = here("run", "--json")

    plan, run = document_of(planned), document_of(done)
    assert (planned.returncode, plan["dry_run"], done.returncode, run["dry_run"]) == (0, True, 0, False)
    for document in (plan, run):
        assert counts(document["mentors"]) == {"reviewed": 3, "paused": 1, "without_certificate": 1}
        assert counts(document["certificates"]) == {"expiring": 1, "expired": 1}
        assert (document["reminders"]["queued"], document["portal"]["queued"]) == (1, 1)
    assert (counts(run["reminders"]), counts(run["portal"])) == (
        {"queued": 1, "sent": 1},
        {"queued": 1, "delivered": 1},
    )
    changes = {change["mentor_id"]: change for change in plan["changes"]}
    first, second = changes[str(paused)], changes[str(reminded)]
    assert [(t["from"], t["to"]) for t in first["transitions"]] == [("recorded", "expired")]
    assert (first["pause"], first["reminders"], first["portal"]) == ("open", [], False)
    assert (second["pause"], second["portal"]) == (None, None)
    assert [(r["threshold_days"], r["expires_on"]) for r in second["reminders"]] == [(7, SOON.isoformat())]


def test_the_documents_of_a_night_that_needs_a_person(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Exit 3, ``attention``, and the figures that say why; the delivery after it says so only once."""
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")
    portal.default = error(404, "contact_not_found")

    run, alerts, deliver = here("run", "--json"), here("alerts", "--json"), here("deliver", "--json")
    resync, shown = here("resync", "M1", "--json"), here("resync", "M1")

    assert (run.returncode, document_of(run)["outcome"]) == (3, "attention")
    assert counts(document_of(run)["portal"]) == {"queued": 1, "failed": 1, "blocked": 1}
    assert (alerts.returncode, deliver.returncode, resync.returncode) == (3, 0, 3)
    assert document_of(alerts)["outcome"] == document_of(resync)["outcome"] == "attention"
    assert [line.partition(" ")[0] for line in shown.stdout.splitlines()] == ["before:", "after:"]
    why = document_of(resync)["error"]
    step = "check the contact ID in the app and the contact in Dynamics, then run the same command again"
    assert (why["code"], why["next_step"]) == ("dynamics_sync", step)


def test_whatever_is_in_a_name_comes_back_from_the_document_as_it_was(here: Certjob, facts: Facts) -> None:
    """And no terminal obeys it."""
    name = 'Kåre "[b]" \x1b[31m\u202e\u2028\x9b\U0001f600'
    pending_hide(facts, full_name=name)

    result = here("alerts", "--json", CERTJOB_LOG_FORMAT="json")

    (alert,) = document_of(result)["alerts"]
    assert (alert["full_name"], alert["sentence"], alert["visible"]) == (name, SENTENCE, False)
    assert all(character.isprintable() or character == "\n" for character in result.stdout)


def test_the_documents_of_the_schema(here: Certjob, empty_database_url: str) -> None:
    """Pending: exit 3; migrated: 0, each migration with its time."""
    commands = (("db", "status"), ("db", "migrate"), ("db", "migrate"), ("db", "status"))

    results = [here(*command, "--json", CERTJOB_DATABASE_URL=empty_database_url) for command in commands]

    assert [result.returncode for result in results] == [3, 0, 0, 0]
    before, migrated, again, after = map(document_of, results)
    assert (before["outcome"], {m["applied_at"] for m in before["migrations"]}) == ("attention", {None})
    assert (migrated["applied"][0], again) == ("0001_facts", {"outcome": "ok", "applied": []})
    assert (after["outcome"], all(m["applied_at"] for m in after["migrations"])) == ("ok", True)


def test_the_documents_of_a_load(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """All rows, a bad row, no CSV at all."""
    facts.organisation("hlf", portal=None)
    header, row = "organisation,member_no,kind,issued_on,expires_on", "hlf,M1,likeperson,2025-01-01,2027-01-01"
    results = []
    for text in (f"{header}\n{row}\n", f"{header}\n{row}\nhlf,M2,likeperson,soon,2027-01-01\n", ""):
        (tmp_path / "people.csv").write_text(text)
        results.append(here("load", "people.csv", "--json"))

    assert [result.returncode for result in results] == [0, 3, 2]
    good, bad, none = map(document_of, results)
    assert (good["outcome"], bad["outcome"], none["outcome"]) == ("ok", "attention", "failed")
    assert (bad["rows"], bad["loaded"], bad["rejected"], none["error"]["code"]) == (2, 1, 1, "input")


def test_every_option_of_an_organisation_arrives(here: Certjob) -> None:
    """What is set is shown; the same again changes nothing."""
    options = ["--name", "HLF Norge", "--portal", "dynamics", "--thresholds", "30,7", "--optional-kind", "kurs"]
    options += ["--coordinator", "Kari <kari@hlf.example> nn", "--contact-email", "post@hlf.example"]
    options += ["--contact-phone", "22 63", "--renewal-url", "https://hlf.example", "--sender", "HLF <x@hlf.example>"]

    first, again = (document_of(here("organisation", "set", "hlf", *options, "--json")) for _ in range(2))
    shown = document_of(here("organisation", "show", "hlf", "--json"))

    assert first == {"outcome": "ok", "organisation": "hlf", "created": True, "changed": True}
    assert (again["created"], again["changed"]) == (False, False)
    (coordinator,) = shown.pop("coordinators")
    assert (coordinator["full_name"], coordinator["email"], coordinator["locale"]) == ("Kari", "kari@hlf.example", "nn")
    (contact, phone, url, sender) = ("post@hlf.example", "22 63", "https://hlf.example", "HLF <x@hlf.example>")
    values = ["hlf", "HLF Norge", "dynamics", [30, 7], ["kurs"], contact, phone, url, sender, 0]
    assert list(shown.values())[2:] == values
    lines = here("organisation", "show", "hlf").stdout.splitlines()
    assert [line.partition("\t")[2] for line in lines[:8]] == [
        "HLF Norge",
        "dynamics",
        "30,7",
        "kurs",
        contact,
        phone,
        url,
        sender,
    ]


def test_every_option_of_the_list_arrives(here: Certjob, facts: Facts) -> None:
    """Each names other mentors."""
    organisation_id = facts.organisation()
    facts.certified_mentor(organisation_id, SOON, member_no="no contact", contact_id=None)
    facts.certified_mentor(organisation_id, SOON, member_no="no address", email=None)
    facts.mentor(organisation_id, member_no="no certificate")
    facts.certified_mentor(facts.organisation("nhf"), LONG_AGO, member_no="left", left_at=datetime.now(UTC))

    for options, wanted in {
        "--without-contact-id": {"no contact"},
        "--without-address": {"no address"},
        "--without-certificate": {"no certificate"},
        "--within 30": {"no contact", "no address"},
        "--status expired --with-left": {"left"},
        "--organisation nhf": set(),
    }.items():
        rows = document_of(here("list", *options.split(), "--json"))["certificates"]
        assert {row["member_no"] for row in rows} == wanted, options


# Quiet and loud.


def test_success_off_a_terminal_is_silent(here: Certjob, facts: Facts) -> None:
    """Not a byte on stdout or stderr, in either form of the log, or cron would write a mail."""
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")
    facts.certified_mentor(facts.organisation("nhf"), SOON)

    for command in ("run", "run -q", "deliver", "resync M1 -q", "db migrate"):
        for form in ("text", "json"):
            result = here(*command.split(), CERTJOB_LOG_FORMAT=form)

            assert (result.returncode, result.stdout, result.stderr) == (0, "", ""), command


def assert_fits(shown: str, columns: int = 100) -> None:
    for line in re.split(r"[\r\n]", without_escapes(shown)):
        assert cell_len(line) <= columns, line
    for order in ("\x1b[2J", "\x1b]0;", "\u202e"):
        assert order not in shown


def test_a_plan_is_a_table_that_fits_and_a_line_for_each_mentor(
    environment: dict[str, str], here: Certjob, facts: Facts, tmp_path: Path
) -> None:
    """On a terminal long names are folded and hostile ones shown as they are written; the totals follow."""
    organisation_id = facts.organisation("a-very-long-slug-for-an-organisation-of-which-there-is-only-one")
    mentor_id = facts.certified_mentor(organisation_id, LONG_AGO, member_no=HOSTILE)
    for number in range(12):
        facts.certificate(mentor_id, SOON, kind=f"kind number {number}")
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")

    code, shown = on_terminal(["run", "--dry-run"], environment=environment, folder=tmp_path)
    off = here("run", "--dry-run")

    assert (code, off.returncode, off.stderr) == (0, 0, "")
    assert_fits(shown)
    text = without_escapes(shown)
    assert "What `certjob run` would do on" in text
    assert "Plan of" in text
    assert "[red]M[/red]" in re.sub(r"[│\s]", "", text)
    first, *_, last, totals = off.stdout.splitlines()
    assert first.startswith("a-very-long-slug")
    assert last == "hlf M1: certificates: expired; pause: open; portal: hide"
    assert totals.startswith(
        "mentors: 2 reviewed, 2 paused; certificates: 12 expiring, 2 expired; reminders: 12 queued"
    )


def test_an_alert_off_a_terminal_is_one_whole_line(certjob: Certjob, facts: Facts) -> None:
    """The sentence of the design, unbroken, whatever is in the name; no colour, though many a build machine forces it.

    The time is that where the programme lives, not the machine's or the server's.
    """
    long_name = "Kari Nordmann " * 20
    pending_hide(facts, full_name=f"{HOSTILE}\n{long_name}", member_no="M1")
    pending_hide(facts, wanted_at="2026-07-15 23:30+00", member_no="M 2")

    result = certjob("alerts", COLUMNS="40", FORCE_COLOR="1", TZ="America/New_York", PGTZ="Asia/Tokyo")
    elsewhere = certjob("alerts", CERTJOB_TIME_ZONE="Pacific/Auckland")

    assert (result.returncode, result.stderr) == (3, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line, number, since in zip(lines, ("M1", "M 2"), ("2026-01-16 00:30", "2026-07-16 01:30"), strict=True):
        assert line.startswith(f"{SENTENCE}: ")
        assert f"({number} of hlf" in line
        assert f", since {since}" in line
        assert line.isprintable()
    assert long_name.strip() in lines[0]
    assert "[red]M[/red]" in lines[0]
    assert "since 2026-01-16 12:30" in elsewhere.stdout


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")


def test_alerts_on_a_terminal_are_coloured_and_fit(
    environment: dict[str, str], here: Certjob, facts: Facts, tmp_path: Path
) -> None:
    """Red for the harm that counts most; NO_COLOR takes the colour, and only that. None: a person wants an answer."""
    nothing = on_terminal(["alerts"], environment=environment, folder=tmp_path)
    assert (nothing[0], without_escapes(nothing[1])) == (0, "All clear: nothing needs attention.\n")
    assert here("alerts").stdout == ""
    pending_hide(facts, full_name=HOSTILE + " Nordmann" * 20, member_no="M1")

    code, shown = on_terminal(["alerts"], environment=environment, folder=tmp_path)
    plain_code, plain = on_terminal(["alerts"], environment=environment | {"NO_COLOR": "1"}, folder=tmp_path)

    assert (code, plain_code) == (3, 3)
    assert COLOUR.search(shown)
    assert not COLOUR.search(plain)
    assert without_escapes(shown) == without_escapes(plain)
    assert_fits(shown)
    for phrase in (SENTENCE, ":smile:", "`certjob resync M1 --organisation hlf"):
        assert phrase in without_escapes(shown)


def test_a_table_off_a_terminal_is_separated_by_tabs(here: Certjob, facts: Facts) -> None:
    """For cut and awk: real tabs, no heading, no wrapping."""
    facts.organisation("hlf", thresholds=(30, -1), optional_kinds=("first aid",))

    result = here("organisation", "list", COLUMNS="20")

    assert result.stdout == "hlf\tHLF\tdynamics\t30, -1\t0\t0\n"


@pytest.mark.parametrize("command", [["alerts"], ["run", "--json"]], ids=" ".join)
def test_a_reader_that_went_away_does_not_hide_the_outcome(
    environment: dict[str, str], facts: Facts, tmp_path: Path, command: list[str]
) -> None:
    """``certjob alerts | head`` is nobody's mistake: no complaint, the exit code as ever."""
    for number in range(300):
        pending_hide(facts, member_no=f"M{number}")
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "stderr").open("w+") as said, Path(os.devnull).open() as null:
        process = forked_command.ForkedCommand(
            command, environment=environment, folder=tmp_path, stdin=null.fileno(), stdout=writing, stderr=said.fileno()
        )
        os.close(writing)
        code = process.wait(60)

    assert code == 3
    complaints = (tmp_path / "stderr").read_text().splitlines()
    assert [line for line in complaints if "see `certjob alerts`" not in line] == []


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_a_closed_stream_does_not_end_the_night(environment: dict[str, str], tmp_path: Path, closed: str) -> None:
    """Some supervisors start their jobs so."""
    result = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" run --json {closed}', str(installed_command())],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "" if ">&-" in closed.split() else json.loads(result.stdout)


# Help.


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words."""
    yield words, command
    for name, child in getattr(command, "commands", {}).items():
        yield from leaves(child, (*words, name))


EVERYTHING = dict(leaves(typer.main.get_command(command_line)))


@pytest.mark.parametrize("words", EVERYTHING, ids=" ".join)
def test_every_command_has_a_help_of_sentences(
    bare_environment: dict[str, str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """The command and each option and argument: a sentence with a full stop; whatever has a default shows it."""
    command = EVERYTHING[words]

    result = run_in_process(*words, "--help", environment=bare_environment, folder=tmp_path)

    text = " ".join(result.stdout.split())
    assert (result.returncode, result.stderr) == (0, "")
    assert command.help.strip().endswith(".")
    for parameter in command.params:
        if parameter.name == "help":
            continue
        sentence = re.sub(r"  \[.*\]$", "", parameter.help or "")
        assert sentence.endswith("."), (words, parameter.name, parameter.help)
        if isinstance(parameter.default, str):
            assert f"[default: {parameter.default}]" in text
    for name, child in getattr(command, "commands", {}).items():
        assert (child.short_help or child.help).endswith("."), (*words, name)
    assert "..." not in text.replace("[ARGS]...", "")


NEEDED = {
    "resync": ["M1"],
    "preview": ["M1"],
    "explain": ["M1"],
    "load": ["x.csv"],
    "bounces": ["reports.mbox"],
    "set": ["hlf"],
    "show": ["hlf"],
    "prune": ["--older-than", "3y"],
}


@pytest.mark.parametrize(
    "words", [words for words in EVERYTHING if not hasattr(EVERYTHING[words], "commands") and words != ("demo",)]
)
def test_a_failure_is_one_line_and_one_document_whatever_the_command(
    bare_environment: dict[str, str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """The same text in both; a file of settings that is not there is refused by its name, before anything is done."""
    command = [*words, *NEEDED.get(words[-1], []), "--env-file", "nowhere.env"]
    text, document = (
        run_in_process(*command, *options, environment=bare_environment, folder=tmp_path)
        for options in ([], ["--json"])
    )

    why = "the settings file nowhere.env cannot be read: No such file or directory"
    assert (text.returncode, document.returncode) == (2, 2)
    assert why in text.stdout + text.stderr
    if words == ("check",):  # it goes on
        return
    error = document_of(document)["error"]
    assert document_of(document)["outcome"] == "failed"
    assert error["code"] == "configuration"
    assert (error["message"], error["next_step"]) == (why, "correct --env-file or CERTJOB_ENV_FILE")
    said = f"certjob {' '.join(words)}: {error['message']}; {error['next_step']}\n"
    assert (text.stderr, document.stderr, text.stdout) == (said, said, "")


def test_the_documents_of_other_failures(bare_environment: dict[str, str], tmp_path: Path) -> None:
    """A database that cannot be reached, and what the parser says."""
    environment = bare_environment | {"CERTJOB_DATABASE_URL": f"postgresql://u:{SECRET}@127.0.0.1:1/x"}

    unreachable = run_in_process("alerts", "--json", environment=environment, folder=tmp_path)
    mistyped = run_in_process("run", "--json", "--dryrun", environment=environment, folder=tmp_path)

    assert (unreachable.returncode, document_of(unreachable)["error"]["code"]) == (1, "database_unavailable")
    assert (mistyped.returncode, document_of(mistyped)["error"]["code"]) == (2, "usage")
    assert SECRET not in unreachable.stdout + unreachable.stderr


def test_a_file_of_settings_is_read_where_it_is_named_and_no_other(
    certjob: Certjob, database_url: str, tmp_path: Path
) -> None:
    """A ``.env`` in the folder where it happens to be started is somebody else's."""
    (tmp_path / ".env").write_text(f"CERTJOB_DATABASE_URL={database_url}\n")
    asked_for = tmp_path / "certjob.env"
    asked_for.write_text(f"CERTJOB_DATABASE_URL='{database_url}'\n")

    unasked = certjob("db", "status", CERTJOB_DATABASE_URL="")
    by_option = certjob("db", "status", "--env-file", "certjob.env", CERTJOB_DATABASE_URL="")
    by_variable = certjob("db", "status", CERTJOB_DATABASE_URL="", CERTJOB_ENV_FILE=str(asked_for))
    asked_for.chmod(0o666)
    open_to_all = certjob("db", "status", "--env-file", str(asked_for), CERTJOB_DATABASE_URL="")

    results = (unasked, by_option, by_variable, open_to_all)
    assert [result.returncode for result in results] == [2, 0, 0, 2]
    assert "CERTJOB_DATABASE_URL is not set" in unasked.stderr
    assert "may be written by others than its owner (mode 666)" in open_to_all.stderr


def test_the_help_names_every_setting(bare_environment: dict[str, str], tmp_path: Path) -> None:
    """Some of them by their ends alone, behind another one."""
    text = run_in_process("--help", environment=bare_environment, folder=tmp_path).stdout

    assert [name for name in Settings.model_fields if f"_{name.rpartition('_')[2].upper()}" not in text] == []
    assert "CERTJOB_APP_URL" in text


def test_help_loads_none_of_the_heavy_libraries(bare_environment: dict[str, str], tmp_path: Path) -> None:
    """Completion and habit call it often; a glance costs no database driver."""
    script = (
        "import sys\n"
        "from certjob.cli import entry\n"
        "from certjob.stopping import StopFlag\n"
        "code = entry.run(['--help'], stop=StopFlag())\n"
        "heavy = {'psycopg', 'httpx', 'jinja2', 'pydantic', 'pydantic_settings', 'babel', 'backoff', 'rich.table'}\n"
        "sys.exit(f'{heavy & set(sys.modules)}' if heavy & set(sys.modules) else code)\n"
    )

    result = subprocess.run(
        [sys.executable, "-c", script], env=bare_environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (result.returncode, result.stderr) == (0, "")


def test_python_runs_it_as_a_module(bare_environment: dict[str, str], tmp_path: Path) -> None:
    """``python -m certjob``, with the same exit codes; its version is the first question of whoever helps."""
    version, nothing = (
        subprocess.run(
            [sys.executable, "-m", "certjob", *options],
            env=bare_environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        for options in (["--version"], ["run"])
    )

    assert version.stdout == f"certjob {__version__}\n"
    assert (nothing.returncode, nothing.stderr.partition(";")[0]) == (2, "certjob run: CERTJOB_DATABASE_URL is not set")
