"""Errors: one line with the cause and the next step, and the documented exit code."""

import json
import os
import subprocess
from pathlib import Path

import psycopg
import pytest

from certjob.database import migrations
from tests.cli.conftest import LONG_AGO, SOON
from tests.conftest import Certjob, installed_command
from tests.support.command_line import SECRET, assert_one_line, on_terminal, started, without_escapes
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer


@pytest.mark.parametrize(
    ("typed", "command", "phrase"),
    [
        ("", "certjob", "Missing command; see `certjob --help`"),
        ("lst", "certjob", "Did you mean 'list'? see `certjob --help`"),
        ("run --dryrun", "certjob run", "--dry-run"),
        ("resync", "certjob resync", "MENTOR"),
        ("run --as-of 2026-03-10", "certjob run", "--as-of requires --dry-run; add it, or omit --as-of"),
        ("run --dry-run --as-of 10.03.2026", "certjob run", "'10.03.2026' is not a valid date; give one such as 2026"),
        ("db prune --older-than soon", "certjob db prune", "'soon' is not an age; give one such as 3y, 18m (months)"),
        ("preview M1 --threshold soon --json", "certjob preview", "'--threshold': Input should be a valid integer"),
        ("list --from 2027-05-31 --to 2027-05-01", "certjob list", "--from"),
        ("status --max-age=-5m", "certjob status", "is not a valid duration; give one such as 90s, 30m or 2h"),
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
        (f"postgresql://u:one@{SECRET}@127.0.0.1:1/x", "percent-encoded", 2),
        (f"postgresql://u:one/{SECRET}@127.0.0.1:1/x", "percent-encoded", 2),
        (f"host=localhost port=1 password='{SECRET}", "CERTJOB_DATABASE_URL", 2),
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


@pytest.mark.parametrize("table", ["mentors", "job_runs"])
def test_locked_table_is_named(
    here: Certjob, monkeypatch: pytest.MonkeyPatch, app: psycopg.Connection[tuple[object, ...]], table: str
) -> None:
    """A job must not wait for ever for a forgotten transaction."""
    monkeypatch.setattr(migrations, "READ_LOCK_TIMEOUT_MS", 50)
    app.execute(f"LOCK TABLE {table}".encode())

    result = here("run")

    holder = f"is locked by another session (process {app.info.backend_pid}) and cannot be read; end"
    assert_one_line(result, f"the table {table} {holder}", code=1)


def test_unknown_names_are_printed(here: Certjob, facts: Facts) -> None:
    """An organisation, a mentor, and an argument that is not UTF-8."""
    facts.mentor(facts.organisation(), member_no="M1")

    run = here("run", "--organisation", "hfl")
    resync = here("resync", "nobody@example.org")
    latin_1 = here("resync", b"bl\xe5".decode("utf-8", "surrogateescape"))

    assert_one_line(run, "no organisation 'hfl'", "`certjob organisation show`", code=2)
    assert_one_line(resync, "no mentor matches 'nobody@example.org'", code=2, command="certjob resync")
    assert_one_line(latin_1, "UTF-8", code=2, command="certjob resync")


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


BROKEN_MAIL = {
    "login without a password": {"NOTIFY_USER": "post"},
    "no sender": {"MAIL_FROM": ""},
    "sender that is not an address": {"MAIL_FROM": "HLF"},
    "wrong bounce address": {"BOUNCE_ADDRESS": "nowhere"},
    "wrong URL": {"NOTIFY_URL": "mailto:x@hlf.example"},
    "wrong app": {"APP_URL": "app.example"},
}


@pytest.mark.parametrize("wrong", BROKEN_MAIL.values(), ids=BROKEN_MAIL)
def test_broken_setting_about_mail_stops_the_mails_only(
    here: Certjob, facts: Facts, portal: PortalServer, wrong: dict[str, str]
) -> None:
    """Each night that pushes no hide would leave an expired mentor visible."""
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")
    mail = {"NOTIFY_URL": "smtp://127.0.0.1:1", "MAIL_FROM": "certjob@hlf.example"} | wrong
    settings = {f"CERTJOB_{name}": value for name, value in mail.items()}

    run = here("run", **settings)

    (name,) = wrong
    name = "NOTIFY_PASSWORD" if name == "NOTIFY_USER" else name
    assert run.returncode == 3
    assert [list(portal.visible.values()), f"CERTJOB_{name}" in run.stderr] == [[False], True]
    assert "; the mails stay pending" in run.stderr
    assert [here(command, *who, **settings).returncode for command, *who in (("resync", "M1"), ("reconcile",))] == [
        0,
        0,
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at once"])
def test_full_disk_is_reported(environment: dict[str, str], tmp_path: Path, unbuffered: str) -> None:
    """Exit 1 and a line, whether Python notices it at the end or at once."""
    settings = environment | ({"PYTHONUNBUFFERED": unbuffered} if unbuffered else {})
    full = os.open("/dev/full", os.O_WRONLY)

    with started("run", "--json", environment=settings, folder=tmp_path, stdout=full) as child:
        os.close(full)
        result = child.finish()

    assert_one_line(result, "no space is left on the disk; make room and run it again", code=1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("typed", "code"), [("run 2>/dev/full", 2), ("run 2>&-", 2), ("--help >/dev/full", 1), ("--help >&-", 0)]
)
def test_full_or_closed_output_keeps_the_documented_exit_code(
    bare_environment: dict[str, str], typed: str, code: int
) -> None:
    command = ["/bin/sh", "-c", f"exec {installed_command()} {typed}"]

    result = subprocess.run(command, env=bare_environment, check=False, timeout=60, capture_output=True)

    assert result.returncode == code


def test_bounces_on_a_terminal_asks_for_a_report(bare_environment: dict[str, str], tmp_path: Path) -> None:
    """It does not wait for input."""
    code, text = on_terminal(["bounces"], environment=bare_environment, folder=tmp_path)

    assert (code, "certjob bounces < report.eml" in without_escapes(text).replace("\n", " ")) == (2, True), text
