"""Logs: quiet unless asked, levels as people expect them, JSON lines that name the run and nobody else."""

import ast
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeGuard
from uuid import UUID

import pytest

import certjob
from certjob import __version__
from certjob.cli.terminal.logs import JsonFormatter, TextFormatter
from tests.conftest import Certjob
from tests.support.command_line import SECRET, Finished, on_terminal, run_in_process, started, without_escapes
from tests.support.facts import Facts
from tests.support.portal_answers import answer, error, hang
from tests.support.portal_server import PortalServer

LONG_AGO = date(2025, 1, 1)
SOON = date.today() + timedelta(days=5)  # noqa: DTZ011 - due for the reminder of 7 days, around midnight too


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer(key=SECRET) as server:
        yield server


@pytest.fixture
def environment(
    bare_environment: dict[str, str], database_url: str, portal: PortalServer, tmp_path: Path
) -> dict[str, str]:
    return bare_environment | {
        "CERTJOB_DATABASE_URL": database_url,
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": SECRET,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}",
    }


@pytest.fixture
def here(environment: dict[str, str], tmp_path: Path) -> Certjob:
    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=environment | settings, folder=tmp_path)

    return run


def lines_of(result: Finished) -> list[dict[str, Any]]:
    """Stderr, every line of which is a JSON object."""
    return [json.loads(line) for line in result.stderr.splitlines()]


# JSON.


def test_a_night_in_json_is_told_by_events_and_ids(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """From its beginning to its end, each line with the run's id, which the document and the ledger have, too."""
    organisation = facts.organisation()
    hidden = facts.certified_mentor(organisation, LONG_AGO)
    reminded = facts.certified_mentor(organisation, SOON)

    result = here("run", "-v", "--json", CERTJOB_LOG_FORMAT="json")

    lines = lines_of(result)
    run_id = json.loads(result.stdout)["run_id"]
    assert [(str(row[0]),) for row in facts.rows("SELECT id FROM job_runs")] == [(run_id,)]
    assert {line["run_id"] for line in lines} == {run_id}
    events = [line["event"] for line in lines]
    assert events == [
        "opened",
        "run_began",
        "phase",
        "phase",
        "event_pushed",
        "phase",
        "message_sent",
        "phase",
        "run_ended",
    ]
    about = {line["event"]: line for line in lines}
    assert about["event_pushed"]["mentor_id"] == str(hidden)
    assert about["event_pushed"]["visible"] is False
    assert about["message_sent"]["mentor_id"] == str(reminded)
    assert about["run_ended"]["outcome"] == "ok"
    assert about["run_ended"]["mentors"]["paused"] == 1
    for line in lines:
        assert list(line)[:5] == ["time", "level", "run_id", "event", "message"]
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta()


def test_no_line_names_a_person(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Whatever goes wrong, with -v in both formats: no name, no address, no member number."""
    portal.default = answer(404, {"error": {"code": "contact_not_found", "message": "no contact for Kari Nordmann"}})
    organisation = facts.organisation()
    facts.certified_mentor(
        organisation, LONG_AGO, member_no="M4711", full_name="Kari Nordmann", email="kari@example.org"
    )
    facts.certified_mentor(organisation, SOON, member_no="M4712", full_name="Ola Nordmann", email="no address")

    for form in ("text", "json"):
        result = here("run", "-v", CERTJOB_LOG_FORMAT=form)

        assert result.returncode == 3
        assert len(result.stderr.splitlines()) > 5
        for secret in ("Nordmann", "kari@", "M4711", "M4712", "no address", SECRET):
            assert secret not in result.stderr


def test_a_push_that_fails_says_how(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Status and kind of the failure, calls made; what the portal said stays in the database."""
    portal.default = error(404, "contact_not_found")
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    (line,) = (
        line for line in lines_of(here("run", "-v", CERTJOB_LOG_FORMAT="json")) if line["event"] == "event_failed"
    )

    assert (line["level"], line["status"], line["cause"], line["attempts"]) == ("debug", 404, "PermanentPortalError", 1)


@pytest.mark.parametrize(
    ("arguments", "settings", "event", "level"),
    [
        ([], {}, "attention", "warning"),
        (["-q"], {}, "attention", "warning"),
        (["--organisation", "nobody"], {}, "failed", "error"),
        (["-q", "--organisation", "nobody"], {}, "failed", "error"),
        (["--dryrun"], {}, "failed", "error"),
        ([], {"CERTJOB_TIME_ZONE": "Mars"}, "failed", "error"),
    ],
)
def test_what_needs_a_person_is_a_warning_and_a_failure_an_error(
    here: Certjob,
    facts: Facts,
    portal: PortalServer,
    arguments: list[str],
    settings: dict[str, str],
    event: str,
    level: str,
) -> None:
    """One JSON line and nothing else on stderr, whatever -q says: the exit code is not 0."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    portal.default = error(404, "contact_not_found")

    result = here("run", *arguments, CERTJOB_LOG_FORMAT="json", **settings)

    (line,) = lines_of(result)
    assert result.returncode in (2, 3)
    assert (line["event"], line["level"], line["command"]) == (event, level, "certjob run")
    assert line["message"]


def test_what_ends_a_run_names_the_run(here: Certjob, facts: Facts) -> None:
    """The line after the command has failed has the same id as those before."""
    lines = lines_of(here("run", "-v", "--organisation", "nobody", CERTJOB_LOG_FORMAT="json"))

    assert [line["event"] for line in lines] == ["opened", "failed"]
    assert len({line["run_id"] for line in lines}) == 1
    assert UUID(lines[0]["run_id"])


def test_a_signal_ends_it_in_json_too(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """With the run's id, for whoever looks it up in `certjob status`."""
    portal.default = hang()
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    with started("run", environment=environment | {"CERTJOB_LOG_FORMAT": "json"}, folder=tmp_path) as child:
        portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
        child.signal()
        result = child.finish()

    (line,) = lines_of(result)
    ((run_id, outcome),) = facts.rows("SELECT id, outcome FROM job_runs")
    assert (line["run_id"], line["event"], outcome) == (str(run_id), "failed", "failed")


def test_a_crash_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    """The traceback is in it, not under it."""
    record = logging.makeLogRecord({"msg": "it broke", "levelname": "ERROR", "event_id": 4711})
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as error:
        record.exc_info = (type(error), error, error.__traceback__)

    line = json.loads(JsonFormatter(run_id=UUID(int=7)).format(record))

    assert (line["event"], line["message"], line["event_id"]) == ("log", "it broke", 4711)
    assert line["run_id"] == str(UUID(int=7))
    assert "ZeroDivisionError" in line["traceback"]


# Text.


def test_a_text_line_has_the_ids_behind_the_sentence() -> None:
    """And none of the machine's words."""
    record = logging.makeLogRecord({"msg": "a %s", "args": ("push",), "event": "event_pushed", "event_id": 4711})

    assert TextFormatter("%(message)s").format(record) == "a push (event_id=4711)"


def test_verbose_says_what_happens(certjob: Certjob) -> None:
    """First the version, the server, the day and the zone: what one asks first when a night went wrong."""
    result = certjob("run", "-v", CERTJOB_TIME_ZONE="Pacific/Auckland")

    assert result.returncode == 0
    first, *rest = result.stderr.splitlines()
    assert re.fullmatch(
        rf"\S+ \S+ DEBUG certjob {re.escape(__version__)} on PostgreSQL \S+.*, today is \S+ in Pacific/Auckland", first
    )
    assert re.match(r"\S+ \S+ INFO the run has begun \(.*host=", rest[0])
    assert re.match(r"\S+ \S+ INFO the run has ended \(outcome=ok, ", rest[-1])


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("arguments", [[], ["-q"]])
def test_a_good_night_off_a_terminal_logs_nothing(here: Certjob, facts: Facts, arguments: list[str], form: str) -> None:
    """In every format; cron sends no mail."""
    facts.certified_mentor(facts.organisation(), SOON)

    result = here("run", *arguments, CERTJOB_LOG_FORMAT=form)

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


LOGGING_CALLS = {"debug", "info", "warning", "error", "exception", "critical", "log", "makeRecord"}


def test_every_line_that_certjob_logs_has_an_event_by_a_name_of_its_own() -> None:
    """Whoever reads JSON lines searches by it; "log" is for the lines of other packages."""
    nameless = []
    seen = 0
    for path in sorted(Path(certjob.__file__).parent.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for call in ast.walk(function):
                if is_logging(call):
                    seen += 1
                    if not has_event(call, function):
                        nameless.append(f"{path.name}:{call.lineno}")

    assert nameless == []
    assert seen > 10, "the search itself finds nothing"


def is_logging(node: ast.AST) -> TypeGuard[ast.Call]:
    """A call of a logger, which certjob calls `logger` everywhere."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LOGGING_CALLS
        and isinstance(node.func.value, ast.Name)
        and "log" in node.func.value.id
    )


def has_event(call: ast.Call, function: ast.FunctionDef) -> bool:
    """Whether its `extra`, or the name that stands there, is made of a dict with an event."""
    extras: list[ast.AST] = [keyword.value for keyword in call.keywords if keyword.arg == "extra"]
    names = {node.id for extra in extras for node in ast.walk(extra) if isinstance(node, ast.Name)}
    for node in ast.walk(function):
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and target.id in names:
            extras += [node.value] if node.value is not None else []
    keys = [key for extra in extras for node in ast.walk(extra) if isinstance(node, ast.Dict) for key in node.keys]
    return any(isinstance(key, ast.Constant) and key.value == "event" for key in keys)


# A terminal.


def test_a_night_on_a_terminal_shows_its_phases(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """While it lasts; at the end they are gone and the figures stay."""
    organisation = facts.organisation()
    facts.certified_mentor(organisation, LONG_AGO)
    facts.certified_mentor(organisation, SOON)

    code, shown = on_terminal(["run"], environment=environment, folder=tmp_path)

    assert code == 0
    for phase in ("Reviewing mentors", "Pushing to the portal", "Sending reminders"):
        assert phase in shown
    assert "\x1b[2K" in shown, "a phase that is over is wiped off"
    assert "2 reviewed" in without_escapes(shown)


def test_without_colour_a_terminal_gets_none(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """NO_COLOR: no colour in the progress and the figures; they are shown all the same."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    _, shown = on_terminal(["run"], environment=environment | {"NO_COLOR": "1"}, folder=tmp_path)

    assert "Reviewing mentors" in shown
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-7]|38;[25];\d+|9[0-7])[;m]", shown)


@pytest.mark.parametrize("terminal", ["stdout", "stderr"])
def test_progress_is_on_stderr_alone(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path, terminal: str
) -> None:
    """`certjob run > file` still shows a person how far it is, and `2> file` keeps the file clean."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    _, shown = on_terminal(["run"], environment=environment, folder=tmp_path, only=[terminal])

    assert ("Reviewing mentors" in shown) is (terminal == "stderr")


def test_json_on_a_terminal_is_the_document_alone(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """Stdout has no colour and no table, with a person watching, too."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    _, shown = on_terminal(["run", "--json"], environment=environment, folder=tmp_path, only=["stdout"])

    assert "\x1b" not in shown
    assert json.loads(shown)["outcome"] == "ok"


def test_quiet_on_a_terminal_moves_no_cursor(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """Not one byte of success."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    code, shown = on_terminal(["run", "-q"], environment=environment, folder=tmp_path)

    assert (code, shown) == (0, "")


def test_json_lines_on_a_terminal_have_it_for_themselves(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """No progress, no table, no output between them: every byte of stderr belongs to an object."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    in_json = environment | {"CERTJOB_LOG_FORMAT": "json"}

    _, night = on_terminal(["run", "-v"], environment=in_json, folder=tmp_path)
    _, migration = on_terminal(["db", "migrate"], environment=in_json, folder=tmp_path)

    assert [json.loads(line)["event"] for line in night.splitlines()][-1] == "run_ended"
    assert migration == ""


def test_steps_on_a_terminal_are_not_drawn_over_by_progress(
    environment: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """With -v each phase is a line; a bar that is drawn anew would swallow some."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)

    _, shown = on_terminal(["run", "-v"], environment=environment, folder=tmp_path, only=["stderr"])

    assert "INFO Reviewing mentors" in shown
    assert "\x1b" not in shown


def test_whatever_a_line_is_about_can_be_written() -> None:
    """Bytes, paths, odd objects: a log line never ends a night."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    record = logging.makeLogRecord({"msg": "odd", "thing": object(), "bytes": b"\xff", "path": Path(os.devnull)})

    handler.handle(record)

    assert json.loads(stream.getvalue())["path"] == os.devnull
