"""Logs: quiet unless asked, levels as people expect them, JSON lines that name the run and nobody else."""

import ast
import json
import logging
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import certjob
from certjob import __version__
from certjob.cli.terminal.logs import JsonFormatter
from tests.cli.conftest import LONG_AGO, SOON
from tests.conftest import Certjob
from tests.support.command_line import SECRET, Finished, on_terminal, without_escapes
from tests.support.facts import Facts
from tests.support.portal_answers import answer
from tests.support.portal_server import PortalServer

NOT_FOUND = answer(404, {"error": {"code": "contact_not_found", "message": "no contact for Kari Nordmann"}})


@pytest.fixture
def environment(environment: dict[str, str], ways_out: dict[str, str]) -> dict[str, str]:
    """Everything set."""
    return environment | ways_out


def lines_of(result: Finished) -> list[dict[str, Any]]:
    """Stderr, every line of which is a JSON object."""
    return [json.loads(line) for line in result.stderr.splitlines()]


def test_a_night_in_json_is_told_by_events_and_ids(here: Certjob, facts: Facts) -> None:
    """From its beginning to its end, each line with the run's id, which the document and the ledger have, too."""
    organisation = facts.organisation()
    hidden = facts.certified_mentor(organisation, LONG_AGO)
    reminded = facts.certified_mentor(organisation, SOON)

    result = here("run", "-v", "--json", CERTJOB_LOG_FORMAT="json")

    lines = lines_of(result)
    run_id = json.loads(result.stdout)["run_id"]
    assert [(str(row[0]),) for row in facts.rows("SELECT id FROM job_runs")] == [(run_id,)]
    assert {line["run_id"] for line in lines} == {run_id}
    assert " ".join(line["event"] for line in lines) == (
        "opened run_began phase phase event_pushed phase message_sent phase run_ended"
    )
    about = {line["event"]: line for line in lines}
    assert (about["event_pushed"]["mentor_id"], about["event_pushed"]["visible"]) == (str(hidden), False)
    assert about["message_sent"]["mentor_id"] == str(reminded)
    assert (about["run_ended"]["outcome"], about["run_ended"]["mentors"]["paused"]) == ("ok", 1)
    for line in lines:
        assert list(line)[:5] == ["time", "level", "run_id", "event", "message"]
        assert datetime.fromisoformat(line["time"]).utcoffset() == timedelta()


def test_no_line_names_a_person(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """Whatever goes wrong, with -v in both formats: no name, no address, no member number; why, by status and kind.

    First what one asks first when a night went wrong: the version, the server, the day and the zone.
    """
    portal.default = NOT_FOUND
    organisation = facts.organisation()
    facts.certified_mentor(organisation, LONG_AGO, member_no="M4711", email="kari@example.org")
    facts.certified_mentor(organisation, SOON, member_no="M4712", full_name="Ola Nordmann", email="no address")

    zone = {"CERTJOB_TIME_ZONE": "Pacific/Auckland"}
    results = [here("run", "-v", "--allow-earlier-date", CERTJOB_LOG_FORMAT=form, **zone) for form in ("json", "text")]

    for result in results:
        assert result.returncode == 3
        assert len(result.stderr.splitlines()) > 5
        for secret in ("Nordmann", "kari@", "M4711", "M4712", "no address", SECRET):
            assert secret not in result.stderr
    first, second, *_ = results[1].stderr.splitlines()
    server = rf"certjob {re.escape(__version__)} on PostgreSQL \S+.*, today is \S+ in Pacific/Auckland"
    assert re.fullmatch(rf"\S+ \S+ DEBUG {server}", first)
    assert re.match(r"\S+ \S+ INFO the run has begun \(.*host=", second)
    assert " INFO the run has ended (outcome=attention, " in results[1].stderr
    assert "event=" not in results[1].stderr
    (line,) = (line for line in lines_of(results[0]) if line["event"] == "event_failed")
    assert (line["level"], line["status"], line["cause"], line["attempts"]) == ("debug", 404, "PermanentPortalError", 1)


def test_what_needs_a_person_is_a_warning_and_a_failure_an_error(
    here: Certjob, facts: Facts, portal: PortalServer
) -> None:
    """One JSON line and nothing else on stderr, whatever -q says: the exit code is not 0. It names the run."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    portal.default = NOT_FOUND

    for arguments, zone, code, event, level in (
        ("-q", "", 3, "attention", "warning"),
        ("-q --organisation nobody", "", 2, "failed", "error"),
        ("--dryrun", "", 2, "failed", "error"),
        ("", "Mars", 2, "failed", "error"),
    ):
        result = here("run", *arguments.split(), CERTJOB_LOG_FORMAT="json", CERTJOB_TIME_ZONE=zone)

        (line,) = lines_of(result)
        assert result.returncode == code
        assert (line["event"], line["level"], line["command"]) == (event, level, "certjob run")
        assert line["message"]
    lines = lines_of(here("run", "-v", "--organisation", "nobody", CERTJOB_LOG_FORMAT="json"))
    assert [line["event"] for line in lines] == ["opened", "failed"]
    assert len({UUID(line["run_id"]) for line in lines}) == 1


def test_whatever_a_line_is_about_can_be_written() -> None:
    """Bytes, paths, odd objects: a log line never ends a night. Without a name of its own an event is a "log"."""
    record = logging.makeLogRecord({"msg": "odd", "thing": object(), "bytes": b"\xff", "path": Path("/dev/null")})

    line = json.loads(JsonFormatter(run_id=UUID(int=7)).format(record))

    assert (line["event"], line["path"], line["run_id"]) == ("log", "/dev/null", str(UUID(int=7)))


def test_every_line_that_certjob_logs_has_an_event_by_a_name_of_its_own() -> None:
    """Whoever reads JSON lines searches by it; "log" is for the lines of other packages."""
    call = re.compile(r"\blogger\.(?:debug|info|warning|error|exception|critical|log|makeRecord)\(")
    nameless, seen = [], 0
    for path in Path(certjob.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                source = ast.unparse(node)
                seen += (calls := len(call.findall(source)))
                nameless += [f"{path.name}: {node.name}"] if calls > source.count("'event': ") else []

    assert (nameless, seen > 10) == ([], True)


def test_a_night_on_a_terminal_shows_what_is_asked_for(
    environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """Phases while it lasts and figures at its end, on stderr alone; JSON and -v have their stream for themselves."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    facts.certified_mentor(facts.organisation("nhf"), SOON)

    def shown(*arguments: str, only: tuple[str, ...] = ("stdout", "stderr"), **settings: str) -> str:
        code, text = on_terminal(arguments, environment=environment | settings, folder=tmp_path, only=only)
        assert code == 0
        return text

    night = shown("run", NO_COLOR="1")
    for phase in ("Reviewing mentors", "Pushing to the portal", "Sending reminders", "Night of "):
        assert phase in night
    assert "\x1b[2K" in night, "a phase that is over is wiped off"
    assert not re.search(r"\x1b\[(?:\d+;)*(?:3[0-7]|38;[25];\d+|9[0-7])[;m]", night)
    assert re.search(r"mentors\s+2 reviewed, 1 paused", without_escapes(night))
    assert re.search(r"portal\s+1 queued, 1 delivered", without_escapes(night))

    assert json.loads(shown("run", "--json", only=("stdout",)))["outcome"] == "ok"
    assert "Reviewing mentors" in shown("run", only=("stderr",))
    steps = shown("run", "-v", only=("stderr",))
    assert "INFO Reviewing mentors" in steps
    assert "\x1b" not in steps, "a bar that is drawn anew would swallow some"
    in_json = shown("run", "-v", CERTJOB_LOG_FORMAT="json")
    assert [json.loads(line)["event"] for line in in_json.splitlines()][-1] == "run_ended"
    for quiet in ("run -q", "resync M1001 --quiet"):
        assert shown(*quiet.split()) == ""
