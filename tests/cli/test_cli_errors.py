"""Errors: one line with the cause and the next step, and the documented exit code."""

import json
import os
import subprocess
from datetime import date, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from certjob.database import migrations
from tests.cli.conftest import LONG_AGO, SOON
from tests.conftest import Certjob, installed_command
from tests.support.command_line import SECRET, assert_one_line, on_terminal, started, today, without_escapes
from tests.support.facts import Facts


@pytest.mark.parametrize(
    ("typed", "command", "phrase"),
    [
        ("", "certjob", "no command was given; see `certjob --help`"),
        ("lst", "certjob", "Did you mean 'list'? see `certjob --help`"),
        ("db", "certjob db", "no command was given; see `certjob db --help`"),
        ("run --dryrun", "certjob run", "--dry-run"),
        ("run tonight", "certjob run", "tonight"),
        ("resync", "certjob resync", "MENTOR"),
        ("run --as-of 2026-03-10", "certjob run", "--as-of requires --dry-run; add it, or omit --as-of"),
        ("run --dry-run --as-of 10.03.2026", "certjob run", "'10.03.2026' is not a valid date; give one such as 2026"),
        ("organisation set hlf --portal web", "certjob organisation set", "'web' is not one of 'dynamics', 'none'"),
        ("list --within soon", "certjob list", "'--within': it must be a valid integer; see `certjob list --help`"),
        ("preview M1 --html --json", "certjob preview", "leave out --json"),
        ("status --max-age=-5m", "certjob status", "is not a valid duration; give one such as 90s, 30m or 2h"),
        ("status --max-age=²h", "certjob status", "is not a valid duration"),
        (f"status --max-age={'9' * 5000}h", "certjob status", "is not a valid duration"),
    ],
)
def test_wrong_command_line_has_a_next_step(anywhere: Certjob, typed: str, command: str, phrase: str) -> None:
    """Exit 2. With --json, stdout has a document, otherwise no text."""
    result = anywhere(*typed.split(), CERTJOB_DATABASE_URL="postgresql://nobody@127.0.0.1:1/x")

    assert_one_line(result, phrase, code=2, command=command)
    if "--json" in typed:
        assert json.loads(result.stdout)["error"]["code"] == "usage"
    else:
        assert result.stdout == ""


@pytest.mark.parametrize(
    ("url", "phrase", "code"),
    [
        (f"mysql://u:{SECRET}@h/x", "CERTJOB_DATABASE_URL is not a valid PostgreSQL URL", 2),
        (f"postgresql://u:{SECRET}%zz@h/x", "CERTJOB_DATABASE_URL is not a valid", 2),
        # libpq would split the password, and print a part of it as the host
        *[(f"postgresql://u:one{sign}{SECRET}@127.0.0.1:1/x", "percent-encoded", 2) for sign in "@/#?"],
        (f"postgresql://u:{SECRET}@127.0.0.1:port/x", "CERTJOB_DATABASE_URL", 2),
        (f"host=localhost port=1 password='{SECRET}", "CERTJOB_DATABASE_URL", 2),
        (f"host=localhost {SECRET}", "CERTJOB_DATABASE_URL", 2),
        (f"host=127.0.0.1 port=1 password={SECRET}", "the database cannot be reached", 1),
        (f"postgresql://u:{SECRET}@database.invalid/x", "database.invalid", 1),
        # libpq asks whether the server is "accepting connections on that socket", which sounds like a start
        ("host={here} dbname=x", "check the host and port", 1),
    ],
)
def test_wrong_database_url_is_not_printed(anywhere: Certjob, tmp_path: Path, url: str, phrase: str, code: int) -> None:
    """Exit 2 for an invalid URL, 1 if a later run may reach the server."""
    result = anywhere("run", "--json", "-v", CERTJOB_DATABASE_URL=url.replace("{here}", str(tmp_path)))

    assert_one_line(result, phrase, code=code)
    assert json.loads(result.stdout)["error"]["code"] == {1: "database_unavailable", 2: "configuration"}[code]


@pytest.mark.parametrize(
    ("command", "table"),
    [("run", "mentors"), ("run", "portal_sync_events"), ("run", "job_runs"), ("status", "mentors")],
)
def test_locked_table_is_named(
    here: Certjob,
    monkeypatch: pytest.MonkeyPatch,
    app: psycopg.Connection[tuple[object, ...]],
    command: str,
    table: str,
) -> None:
    """A job must not wait for ever for a forgotten transaction."""
    monkeypatch.setattr(migrations, "READ_LOCK_TIMEOUT_MS", 50)
    app.execute(f"LOCK TABLE {table}".encode())

    holder = f"is locked by another session (process {app.info.backend_pid}) and cannot be read; end"
    assert_one_line(here(command), f"the table {table} {holder}", code=1, command=f"certjob {command}")


def test_unknown_names_are_printed(here: Certjob, facts: Facts) -> None:
    """A mentor, an organisation, a file, and an argument that is not UTF-8."""
    facts.mentor(facts.organisation(), member_no="M1")

    for options in ((), ("--dry-run",)):
        result = here("run", *options, "--organisation", "hfl")
        assert_one_line(result, "no organisation 'hfl'", "`certjob organisation list`", code=2)
    assert_one_line(here("run", "--organisation", b"bl\xe5".decode("utf-8", "surrogateescape")), "UTF-8", code=2)
    for name in ("M9", "nobody@example.org", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"):
        assert_one_line(here("resync", name), f"no mentor matches '{name}'", code=2, command="certjob resync")
    assert_one_line(here("load", "no-such.csv"), "no-such.csv", code=2, command="certjob load")


def test_ambiguous_mentor_has_its_candidates(here: Certjob, facts: Facts) -> None:
    """By number and organisation, without names. --organisation selects one."""
    facts.mentor(facts.organisation(), member_no="M1")
    facts.mentor(facts.organisation("nhf", portal=None), member_no="M1")

    line = assert_one_line(here("resync", "M1"), "M1 of hlf", "M1 of nhf", code=2, command="certjob resync")
    found = here("resync", "M1", "--organisation", "nhf")

    assert "Nordmann" not in line
    assert (found.returncode, found.stdout.splitlines()[1]) == (0, "after:  M1: no certificate; not paused; no portal")


def test_day_before_the_last_run_needs_accept_date(here: Certjob, facts: Facts) -> None:
    """The clock is wrong now, or was wrong in that run. A person decides."""
    ahead = today() + timedelta(days=30)
    about = {"id": uuid4(), "command": "run", "as_of": ahead, "host": "elsewhere", "version": "1"}
    facts.insert("job_runs", **about, finished_at=ahead, outcome="ok")
    facts.mentor(facts.organisation(portal=None), member_no="M1")

    for command, name in (("run", "run"), ("run --dry-run", "run"), ("resync M1", "resync")):
        phrases = str(ahead), f"run --accept-date {today()}"
        assert_one_line(here(*command.split()), *phrases, code=2, command=f"certjob {name}")
    for command in ("run --dry-run", "run"):
        assert here(*command.split(), "--accept-date", str(today())).returncode == 0


def test_missing_setting_is_named_only_if_it_is_needed(here: Certjob, facts: Facts) -> None:
    """Each stage has one line while something waits for it."""
    unset = {"CERTJOB_PORTAL_URL": "", "CERTJOB_NOTIFY_URL": ""}
    not_needed = here("run", **unset)
    facts.certified_mentor(facts.organisation(), SOON)
    facts.certified_mentor(facts.organisation("nhf"), LONG_AGO)
    needed = here("run", **unset)

    assert (not_needed.returncode, not_needed.stderr, needed.returncode) == (0, "", 3)
    for stage, setting in (("portal", "PORTAL_URL"), ("mail", "NOTIFY_URL")):
        assert needed.stderr.count(f"certjob run: {stage}: CERTJOB_{setting} is not set; ") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk_is_reported(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """Exit 1 and a line, whether Python notices it at once or at the end."""
    facts.certified_mentor(facts.organisation(portal=None), date(2999, 1, 1), member_no="M7")
    line = "certjob {}: no space is left on the disk; make room and run it again\n"
    full = os.open("/dev/full", os.O_WRONLY)
    for command in ("run --dry-run", "explain M7 --json"):
        with started(*command.split(), environment=environment, folder=tmp_path, stdout=full) as child:
            result = child.finish()
        assert (result.stderr, result.returncode) == (line.format(command.split()[0]), 1)
    command_line, at_once = [str(installed_command()), "run", "--json"], environment | {"PYTHONUNBUFFERED": "1"}
    result = subprocess.run(command_line, env=at_once, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    os.close(full)

    assert (result.stderr, result.returncode) == (line.format("run"), 1)


def test_bounces_on_a_terminal_asks_for_a_report(bare_environment: dict[str, str], tmp_path: Path) -> None:
    """It does not wait for input."""
    code, text = on_terminal(["bounces"], environment=bare_environment, folder=tmp_path)

    assert (code, "certjob bounces < report.eml" in without_escapes(text).replace("\n", " ")) == (2, True), text
