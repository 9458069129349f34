"""What the commands print: one JSON document, nothing on success, tables on a terminal, whole lines off it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import typer
from rich.cells import cell_len

from certjob import __version__
from certjob.cli.app import app as command_line
from tests.conftest import Certjob, installed_command
from tests.support.command_line import SECRET, Finished, on_terminal, run_in_process, without_escapes
from tests.support.facts import Facts
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer

LONG_AGO = date(2025, 1, 1)
SOON = date.today() + timedelta(days=5)  # noqa: DTZ011 - due for the reminder of 7 days, around midnight too

SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer(key=SECRET) as server:
        yield server


@pytest.fixture
def environment(
    bare_environment: dict[str, str], database_url: str, portal: PortalServer, tmp_path: Path
) -> dict[str, str]:
    """A cron line with everything set: the database, a portal over real HTTP, a Maildir."""
    return bare_environment | {
        "CERTJOB_DATABASE_URL": database_url,
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": SECRET,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}",
    }


@pytest.fixture
def here(environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Like ``certjob`` with everything set, but in this process."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=environment | settings, folder=tmp_path)

    return run


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


# --json: one document, with the keys of the design.

BEGINNING = ["run_id", "command", "today", "dry_run", "outcome", "duration_seconds"]
MENTORS = ["reviewed", "paused", "resumed", "skipped", "without_certificate"]
CERTIFICATES = ["upcoming", "valid", "expiring", "expired", "renewed", "revoked"]
REMINDERS = ["queued", "sent", "failed", "cancelled", "lost", "pending"]
PORTAL = ["queued", "delivered", "failed", "blocked", "lost", "pending"]
DIGESTS = ["sent", "failed", "pending"]


def shape(document: Mapping[str, Any]) -> dict[str, list[str] | None]:
    """The keys in their order, and those of the parts."""
    return {key: list(value) if isinstance(value, dict) else None for key, value in document.items()}


def expected(**parts: list[str] | None) -> dict[str, list[str] | None]:
    return dict.fromkeys(BEGINNING) | parts


ALERTS = ["held", "never_reviewed", "may_be_visible", "contradictory", "unknown_contacts", "portal_not_read"]
ALERTS += ["may_be_hidden", "failed_reminders", "failed_digests", "waiting_reminders", "waiting_digests"]
RUN = expected(
    mentors=MENTORS,
    certificates=CERTIFICATES,
    reminders=REMINDERS,
    portal=PORTAL,
    digests=DIGESTS,
    mail_waits_until=None,
    problems=None,
    held=None,
    alerts=ALERTS,
    stopped=None,
)


def test_the_document_of_a_run_has_the_keys_of_the_design(certjob: Certjob, environment: dict[str, str]) -> None:
    """On an empty night as on any other, in this order."""
    result = certjob("run", "--json", **environment)

    document = document_of(result)
    assert (result.returncode, result.stderr) == (0, "")
    assert shape(document) == RUN
    assert list(shape(document)) == list(RUN)
    assert (document["command"], document["dry_run"], document["outcome"]) == ("run", False, "ok")
    assert str(UUID(document["run_id"])) == document["run_id"]
    assert date.fromisoformat(document["today"]) <= date.today() + timedelta(days=1)  # noqa: DTZ011
    assert document["duration_seconds"] >= 0


def test_the_document_of_a_run_counts_what_it_did(certjob: Certjob, environment: dict[str, str], facts: Facts) -> None:
    """One mentor paused and hidden, one reminded."""
    organisation_id = facts.organisation()
    facts.certified_mentor(organisation_id, LONG_AGO)
    facts.certified_mentor(organisation_id, SOON)
    facts.mentor(organisation_id)

    document = document_of(certjob("run", "--json", **environment))

    assert document["mentors"] == dict.fromkeys(MENTORS, 0) | {"reviewed": 3, "paused": 1, "without_certificate": 1}
    assert document["certificates"] == dict.fromkeys(CERTIFICATES, 0) | {"expiring": 1, "expired": 1}
    assert document["reminders"] == dict.fromkeys(REMINDERS, 0) | {"queued": 1, "sent": 1}
    assert document["portal"] == dict.fromkeys(PORTAL, 0) | {"queued": 1, "delivered": 1}
    assert document["outcome"] == "ok"


def test_the_document_of_a_dry_run_has_the_changes_too(here: Certjob, facts: Facts) -> None:
    """Per mentor: transitions, pause, reminders, portal."""
    organisation_id = facts.organisation()
    paused = facts.certified_mentor(organisation_id, LONG_AGO, member_no="M1")
    reminded = facts.certified_mentor(organisation_id, SOON, member_no="M2")

    result = here("run", "--dry-run", "--json")

    document = document_of(result)
    assert (result.returncode, document["dry_run"]) == (0, True)
    of_a_plan = {key: keys for key, keys in RUN.items() if key != "alerts"}  # a plan leaves the alerts as they are
    assert shape(document) == of_a_plan | {"changes": None}
    changes = {change["mentor_id"]: change for change in document["changes"]}
    assert {tuple(change) for change in changes.values()} == {
        ("mentor_id", "member_no", "organisation", "transitions", "pause", "reminders", "portal")
    }
    first, second = changes[str(paused)], changes[str(reminded)]
    assert [(t["from"], t["to"]) for t in first["transitions"]] == [("recorded", "expired")]
    assert (first["pause"], first["reminders"], first["portal"]) == ("open", [], False)
    assert (second["pause"], second["portal"]) == (None, None)
    assert [(r["threshold_days"], r["expires_on"]) for r in second["reminders"]] == [(7, SOON.isoformat())]
    assert facts.rows("SELECT count(*) FROM job_runs") == [(0,)]


def test_the_document_of_a_delivery_leaves_out_the_review(here: Certjob) -> None:
    """No mentors, no certificates, nothing queued."""
    result = here("deliver", "--json")

    assert result.returncode == 0
    assert shape(document_of(result)) == expected(
        reminders=REMINDERS[1:], portal=PORTAL[1:], digests=DIGESTS, mail_waits_until=None, stopped=None
    )


def test_the_document_of_a_resync_leaves_out_the_sending(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """It queues reminders and sends none; there are no digests. On a failure the error is in it."""
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")
    keys = expected(
        mentors=MENTORS,
        certificates=CERTIFICATES,
        reminders=["queued", "pending"],
        portal=PORTAL,
        problems=None,
        held=None,
        stopped=None,
    )

    well = here("resync", "M1", "--json")
    portal.then(error(404, "contact_not_found"))
    badly = here("resync", "M1", "--json")

    assert (well.returncode, well.stderr) == (0, "")
    assert shape(document_of(well)) == keys
    assert badly.returncode == 3
    assert shape(document_of(badly)) == keys | {"error": ["code", "message"]}
    assert document_of(badly)["outcome"] == "attention"
    assert document_of(badly)["error"]["code"] == "dynamics_sync"


def test_the_document_of_a_night_that_needs_a_person(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Exit 3, ``attention``, and the figures that say why; the same of the delivery after it, but only once."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    portal.default = error(404, "contact_not_found")

    run, alerts, deliver = here("run", "--json"), here("alerts", "--json"), here("deliver", "--json")

    assert (run.returncode, document_of(run)["outcome"]) == (3, "attention")
    assert document_of(run)["portal"] == dict.fromkeys(PORTAL, 0) | {"queued": 1, "failed": 1, "blocked": 1}
    assert (alerts.returncode, deliver.returncode) == (3, 0)
    assert document_of(alerts)["outcome"] == "attention"


def test_the_document_of_the_alerts_has_the_columns_of_the_view(here: Certjob, facts: Facts) -> None:
    """Whatever is in a name comes back as it was, and times with their offset."""
    name = 'Kåre "[b]" \x1b[31m\u202e\u2028\x9b\U0001f600'
    pending_hide(facts, full_name=name, member_no="M1")
    nothing = here("alerts", "--json", CERTJOB_LOG_FORMAT="json")
    facts.connection.execute("UPDATE portal_sync_events SET status = 'withdrawn'")
    empty = here("alerts", "--json")

    (alert,) = document_of(nothing)["alerts"]
    assert list(alert) == [
        *("event_id", "mentor_id", "organisation_id", "member_no", "full_name", "visible", "sentence", "error"),
        *("attempts", "wanted_at", "last_failed_at", "code"),
    ]
    assert (alert["full_name"], alert["sentence"], alert["visible"]) == (name, SENTENCE, False)
    assert re.fullmatch(r"2026-01-1\dT\d\d:30:00[+-]\d\d:\d\d", alert["wanted_at"])
    assert all(character.isprintable() or character == "\n" for character in nothing.stdout)
    lists = ["held", "never_reviewed", "alerts", "contradictory", "unknown_contacts", "portal_not_read"]
    lists += ["failed_reminders", "failed_digests", "waiting_mail"]
    assert document_of(empty) == {"outcome": "ok", **{name: [] for name in lists}}
    assert empty.returncode == 0


def test_the_documents_of_the_schema(here: Certjob, empty_database_url: str) -> None:
    """Pending: exit 3; migrated: 0, each migration with its time."""
    settings = {"CERTJOB_DATABASE_URL": empty_database_url}

    before = here("db", "status", "--json", **settings)
    migrated = here("db", "migrate", "--json", **settings)
    again = here("db", "migrate", "--json", **settings)
    after = here("db", "status", "--json", **settings)

    assert (before.returncode, document_of(before)["outcome"]) == (3, "attention")
    assert {m["applied_at"] for m in document_of(before)["migrations"]} == {None}
    assert (migrated.returncode, document_of(migrated)["applied"][0]) == (0, "0001_facts")
    assert document_of(again) == {"outcome": "ok", "applied": []}
    assert (after.returncode, document_of(after)["outcome"]) == (0, "ok")
    assert all(m["applied_at"] for m in document_of(after)["migrations"])


def test_the_documents_of_the_organisations(here: Certjob) -> None:
    """Set, and listed with its rules."""
    first = here("organisation", "set", "hlf", "--portal", "dynamics", "--thresholds", "30,-1", "--json")
    again = here("organisation", "set", "hlf", "--portal", "dynamics", "--json")
    listed = here("organisation", "list", "--json")

    assert document_of(first) == {"outcome": "ok", "slug": "hlf", "created": True, "changed": True}
    assert document_of(again) == {"outcome": "ok", "slug": "hlf", "created": False, "changed": False}
    (row,) = document_of(listed)["organisations"]
    assert (document_of(listed)["outcome"], row["slug"], row["thresholds"]) == ("ok", "hlf", [30, -1])


def test_the_documents_of_a_load(here: Certjob, facts: Facts, tmp_path: Path) -> None:
    """All rows, a bad row, no CSV at all."""
    facts.organisation("hlf", portal=None)
    good, bad, none = tmp_path / "good.csv", tmp_path / "bad.csv", tmp_path / "none.csv"
    header, row = "organisation,member_no,kind,issued_on,expires_on", "hlf,M1,likeperson,2025-01-01,2027-01-01"
    good.write_text(f"{header}\n{row}\n")
    bad.write_text(f"{header}\n{row}\nhlf,M2,likeperson,soon,2027-01-01\n")
    none.write_text("")

    results = [here("load", str(path), "--json") for path in (good, bad, none)]

    assert [result.returncode for result in results] == [0, 3, 2]
    documents = [document_of(result) for result in results]
    assert [document["outcome"] for document in documents] == ["ok", "attention", "failed"]
    assert [documents[1][key] for key in ("rows", "loaded", "rejected")] == [2, 1, 1]
    assert documents[2]["error"]["code"] == "input"


EVERY_COMMAND = [
    ("run",),
    ("deliver",),
    ("resync", "M1"),
    ("alerts",),
    ("load", "x.csv"),
    ("organisation", "list"),
    ("organisation", "set", "hlf"),
    ("db", "migrate"),
    ("db", "status"),
]


@pytest.mark.parametrize("command", EVERY_COMMAND, ids=" ".join)
@pytest.mark.parametrize(
    ("url", "code", "name"),
    [("", 2, "configuration"), (f"postgresql://u:{SECRET}@127.0.0.1:1/x", 1, "database_unavailable")],
)
def test_a_failure_is_one_document_and_one_line_whatever_the_command(
    bare_environment: dict[str, str], tmp_path: Path, command: tuple[str, ...], url: str, code: int, name: str
) -> None:
    """The same text in both; without --json nothing on stdout."""
    settings = bare_environment | {"CERTJOB_DATABASE_URL": url}
    as_json = run_in_process(*command, "--json", environment=settings, folder=tmp_path)
    as_text = run_in_process(*command, environment=settings, folder=tmp_path)

    document = document_of(as_json)
    assert document == {"outcome": "failed", "error": {"code": name, "message": document["error"]["message"]}}
    assert as_json.returncode == as_text.returncode == code
    words = " ".join(word for word in command if word not in ("M1", "x.csv", "hlf"))
    assert as_json.stderr == as_text.stderr == f"certjob {words}: {document['error']['message']}\n"
    assert (as_text.stdout, SECRET in as_json.stdout + as_json.stderr) == ("", False)


def test_a_wrong_command_line_is_one_document_too(here: Certjob) -> None:
    """Also what the parser says."""
    result = here("run", "--json", "--dryrun")

    assert result.returncode == 2
    assert document_of(result)["error"]["code"] == "usage"


# Quiet and loud.


@pytest.mark.parametrize("command", [["run"], ["deliver"], ["resync", "M1", "-q"], ["db", "migrate"]])
def test_success_off_a_terminal_is_silent(
    certjob: Certjob, environment: dict[str, str], facts: Facts, command: list[str]
) -> None:
    """Not a byte on stdout or stderr, or cron would write a mail."""
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")

    result = certjob(*command, **environment)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("command", [["run", "-q"], ["resync", "M1", "--quiet"], ["db", "migrate", "-q"]])
def test_a_quiet_success_on_a_terminal_is_silent(
    environment: dict[str, str], facts: Facts, tmp_path: Path, command: list[str]
) -> None:
    """-q, behind the command's name."""
    facts.certified_mentor(facts.organisation(), LONG_AGO, member_no="M1")

    assert on_terminal(command, environment=environment, folder=tmp_path) == (0, "")


def test_a_quiet_failure_still_says_why(here: Certjob) -> None:
    """-q is no gag."""
    result = here("run", "-q", "--organisation", "nobody")

    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def assert_fits(shown: str, columns: int = 100) -> None:
    for line in re.split(r"[\r\n]", without_escapes(shown)):
        assert cell_len(line) <= columns, line


COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;\d+)*m")

HOSTILE = "[red]M[/red]\x1b[2J\x1b]0;gotcha\x07\u202e:smile:\\"


def test_a_night_on_a_terminal_ends_with_its_figures(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """A small table that fits."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    code, shown = on_terminal(["run"], environment=environment, folder=tmp_path)

    assert code == 0
    text = without_escapes(shown)
    assert "Night of " in text
    assert re.search(r"mentors\s+1 reviewed, 1 paused", text)
    assert re.search(r"portal\s+1 queued, 1 delivered", text)
    assert_fits(shown)


def test_a_plan_on_a_terminal_is_a_table_that_fits(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """Long names are folded, hostile ones shown as they are written, and the totals follow."""
    organisation_id = facts.organisation("a-very-long-slug-for-an-organisation-of-which-there-is-only-one")
    mentor_id = facts.certified_mentor(organisation_id, LONG_AGO, member_no=HOSTILE)
    for number in range(12):
        facts.certificate(mentor_id, SOON, kind=f"kind number {number}")

    code, shown = on_terminal(["run", "--dry-run"], environment=environment, folder=tmp_path)

    assert code == 0
    assert_fits(shown)
    text = without_escapes(shown)
    assert "What `certjob run` would do on" in text
    assert "[red]M[/red]" in re.sub(r"[│\s]", "", text)
    assert "Plan of" in text
    for order in ("\x1b[2J", "\x1b]0;", "\u202e"):
        assert order not in shown


def test_a_plan_off_a_terminal_is_a_line_per_mentor(here: Certjob, facts: Facts) -> None:
    """And one for the totals."""
    organisation_id = facts.organisation()
    facts.certified_mentor(organisation_id, LONG_AGO, member_no="M1")
    facts.certified_mentor(organisation_id, SOON, member_no="M2")

    result = here("run", "--dry-run")

    assert (result.returncode, result.stderr) == (0, "")
    first, second, totals = result.stdout.splitlines()
    assert first == "hlf M1: certificates: expired; pause: pause; portal: hide"
    assert second == "hlf M2: certificates: expiring; reminder: 7 days before"
    assert totals.startswith("mentors: 2 reviewed, 1 paused; certificates: 1 expiring, 1 expired; reminders: 1 queued")


def test_an_alert_off_a_terminal_is_one_whole_line(certjob: Certjob, facts: Facts) -> None:
    """The sentence of the design, unbroken, whatever is in the name; the time where the programme lives."""
    long_name = "Kari Nordmann " * 20
    first = pending_hide(facts, full_name=f"{HOSTILE}\n{long_name}", member_no="M1")
    second = pending_hide(facts, wanted_at="2026-07-15 23:30+00", member_no="M 2")

    result = certjob("alerts", COLUMNS="40")

    assert (result.returncode, result.stderr) == (3, "")
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line, mentor_id, since in zip(lines, (first, second), ("2026-01-16 00:30", "2026-07-16 01:30"), strict=True):
        assert line.startswith(f"{SENTENCE}: ")
        assert str(mentor_id) in line
        assert f"wanted since {since}" in line
        assert line.isprintable()
    assert long_name.strip() in lines[0]
    assert "[red]M[/red]" in lines[0]


def test_times_are_those_of_the_programmes_zone(here: Certjob, facts: Facts) -> None:
    """CERTJOB_TIME_ZONE, not the machine's or the server's."""
    pending_hide(facts)

    result = here("alerts", CERTJOB_TIME_ZONE="Pacific/Auckland", TZ="America/New_York", PGTZ="Asia/Tokyo")

    assert "wanted since 2026-01-16 12:30" in result.stdout


def test_alerts_on_a_terminal_are_coloured_and_fit(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """Red for the harm that counts most; NO_COLOR takes the colour, and only that."""
    pending_hide(facts, full_name=HOSTILE + " Nordmann" * 20, member_no="M1")

    code, shown = on_terminal(["alerts"], environment=environment, folder=tmp_path)
    plain_code, plain = on_terminal(["alerts"], environment=environment | {"NO_COLOR": "1"}, folder=tmp_path)

    assert (code, plain_code) == (3, 3)
    assert COLOUR.search(shown)
    assert not COLOUR.search(plain)
    for each in (shown, plain):
        assert_fits(each)
        assert SENTENCE in without_escapes(each)
        assert ":smile:" in without_escapes(each)
        assert "\x1b[2J" not in each
        assert "`certjob resync M1`" in without_escapes(each)
    assert without_escapes(shown) == without_escapes(plain)


def test_no_alerts_are_said_on_a_terminal_only(environment: dict[str, str], here: Certjob, tmp_path: Path) -> None:
    """A person wants an answer, a pipe wants lines."""
    assert here("alerts").stdout == ""
    code, shown = on_terminal(["alerts"], environment=environment, folder=tmp_path)
    assert (code, without_escapes(shown)) == (0, "All clear: nothing needs attention.\n")


def test_a_table_off_a_terminal_is_parted_by_tabs(certjob: Certjob, facts: Facts) -> None:
    """For cut and awk: real tabs, no heading, no wrapping."""
    facts.organisation("hlf", thresholds=(30, -1), optional_kinds=("first aid",))

    result = certjob("organisation", "list", COLUMNS="20")

    assert result.stdout == "hlf\tHLF\tdynamics\t30, -1\t0\t0\n"


def test_colour_is_not_forced_on_a_file(certjob: Certjob, facts: Facts) -> None:
    """FORCE_COLOR, which many a build machine sets, makes no table of what a program reads."""
    pending_hide(facts)

    result = certjob("alerts", FORCE_COLOR="1", COLUMNS="30")

    assert result.stdout.count("\n") == 1
    assert "\x1b" not in result.stdout


@contextmanager
def pipe_that_nobody_reads() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


@pytest.mark.parametrize(("command", "code"), [(["alerts"], 3), (["alerts", "--json"], 3), (["run", "--json"], 3)])
def test_a_reader_that_went_away_does_not_hide_the_outcome(
    environment: dict[str, str], facts: Facts, tmp_path: Path, command: list[str], code: int
) -> None:
    """``certjob alerts | head`` is nobody's mistake: no complaint, the exit code as ever."""
    for number in range(300):
        pending_hide(facts, member_no=f"M{number}")
    with pipe_that_nobody_reads() as writing:
        result = subprocess.run(
            [str(installed_command()), *command],
            env=environment,
            cwd=tmp_path,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert result.returncode == code
    assert [line for line in result.stderr.splitlines() if "see `certjob alerts`" not in line] == []


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
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
def test_every_command_has_a_help_of_sentences(here: Certjob, words: tuple[str, ...]) -> None:
    """The command and each option and argument: a sentence with a full stop; whatever has a default shows it."""
    command = EVERYTHING[words]

    result = here(*words, "--help")

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


@pytest.mark.parametrize(
    "words", [words for words in EVERYTHING if not hasattr(EVERYTHING[words], "commands")], ids=" ".join
)
def test_every_command_takes_its_settings_from_a_file_if_asked(
    bare_environment: dict[str, str], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """One that is not there is refused by its name, before anything is done."""
    if words == ("demo",):
        pytest.skip("it has no settings")
    needed = {
        "resync": ["M1"],
        "preview": ["M1"],
        "explain": ["M1"],
        "load": ["x.csv"],
        "bounces": ["reports.mbox"],
        "set": ["hlf"],
        "show": ["hlf"],
    }
    needed["prune"] = ["--older-than", "3y"]

    result = run_in_process(
        *words, *needed.get(words[-1], []), "--env-file", "nowhere.env", environment=bare_environment, folder=tmp_path
    )

    assert result.returncode == 2, result
    assert "the settings file nowhere.env cannot be read: No such file or directory" in result.stdout + result.stderr


@pytest.mark.parametrize("way", ["option", "variable"])
def test_the_installed_command_reads_that_file_and_no_other(
    bare_environment: dict[str, str], database_url: str, tmp_path: Path, way: str
) -> None:
    """A ``.env`` in the folder where it happens to be started is somebody else's."""
    (tmp_path / ".env").write_text(f"CERTJOB_DATABASE_URL={database_url}\n")
    asked_for = tmp_path / "certjob.env"
    asked_for.write_text(f"CERTJOB_DATABASE_URL='{database_url}'\n")

    def run(*options: str, **settings: str) -> Finished:
        return subprocess.run(
            [str(installed_command()), "db", "status", *options],
            env=bare_environment | settings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    unasked = run()
    asked = run("--env-file", "certjob.env") if way == "option" else run(CERTJOB_ENV_FILE=str(asked_for))
    asked_for.chmod(0o666)
    open_to_all = run("--env-file", str(asked_for))

    assert (unasked.returncode, asked.returncode, open_to_all.returncode) == (2, 0, 2), asked
    assert "CERTJOB_DATABASE_URL is not set" in unasked.stderr
    assert "may be written by others than its owner (mode 666)" in open_to_all.stderr


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


def test_the_version_is_told(certjob: Certjob) -> None:
    """The first question of whoever helps."""
    assert certjob("--version").stdout == f"certjob {__version__}\n"


def test_python_runs_it_as_a_module(environment: dict[str, str], tmp_path: Path) -> None:
    """``python -m certjob``, with the same exit codes."""
    result = subprocess.run(
        [sys.executable, "-m", "certjob", "run", "--organisation", "nobody"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert result.stderr.startswith("certjob run: no organisation 'nobody'")
