"""Logs: warnings only unless -v is given, in text or JSON, with ids and without people."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from certjob import __version__
from tests.cli.conftest import LONG_AGO, SOON
from tests.conftest import Certjob
from tests.support.command_line import SECRET, Finished, on_terminal, without_escapes
from tests.support.facts import Facts
from tests.support.portal_answers import answer
from tests.support.portal_server import PortalServer

NOT_FOUND = answer(404, {"error": {"code": "contact_not_found", "message": "no contact for Kari Nordmann"}})


def lines_of(result: Finished) -> list[dict[str, Any]]:
    """Return the lines of stderr, which are JSON objects."""
    return [json.loads(line) for line in result.stderr.splitlines()]


def test_json_log_tells_a_run_by_events_and_ids(here: Certjob, facts: Facts) -> None:
    """Each line has the id of the run, as the document and ``job_runs`` have."""
    organisation = facts.organisation()
    hidden = facts.certified_mentor(organisation, LONG_AGO)
    reminded = facts.certified_mentor(organisation, SOON)

    result = here("run", "-v", "--json", CERTJOB_LOG_FORMAT="json")

    lines = lines_of(result)
    run_id = json.loads(result.stdout)["run_id"]
    assert facts.rows("SELECT id::text FROM job_runs") == [(run_id,)]
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
    opened, failed = lines_of(here("run", "-v", "--organisation", "unknown", CERTJOB_LOG_FORMAT="json"))
    assert (failed["event"], failed["run_id"]) == ("failed", opened["run_id"])


def test_log_names_no_person(here: Certjob, facts: Facts, portal: PortalServer) -> None:
    """With -v, failures have the status and kind of error. The first line has versions, day and time zone."""
    portal.default = NOT_FOUND
    organisation = facts.organisation()
    facts.certified_mentor(organisation, LONG_AGO, member_no="M4711", email="kari@example.org")
    facts.certified_mentor(organisation, SOON, member_no="M4712", full_name="Ola Nordmann", email="no address")
    command = "run", "-v", "--accept-date", str(datetime.now(ZoneInfo("Asia/Tokyo")).date())

    results = [here(*command, CERTJOB_LOG_FORMAT=form, CERTJOB_TIME_ZONE="Asia/Tokyo") for form in ("json", "text")]

    for result in results:
        assert (result.returncode, len(result.stderr.splitlines()) > 5) == (3, True)
        for secret in ("Nordmann", "kari@", "M4711", "M4712", "no address", SECRET):
            assert secret not in result.stderr
    server = rf"certjob {re.escape(__version__)} on PostgreSQL \S+.*, today is \S+ in Asia/Tokyo"
    assert re.match(rf"\S+ \S+ DEBUG {server}\n\S+ \S+ INFO the run has begun \(.*host=", results[1].stderr)
    assert " INFO the run has ended (outcome=attention, " in results[1].stderr
    assert "event=" not in results[1].stderr
    (line,) = (line for line in lines_of(results[0]) if line["event"] == "event_failed")
    assert (line["level"], line["status"], line["cause"], line["attempts"]) == ("debug", 404, "PermanentPortalError", 1)


@pytest.mark.parametrize(
    ("options", "zone", "expected"),
    [
        pytest.param("-q", "", {"code": 3, "event": "attention", "level": "warning"}, id="alert"),
        pytest.param("-q --dryrun", "", {"code": 2, "event": "failed", "level": "error"}, id="unknown option"),
        pytest.param("", "Mars", {"code": 2, "event": "failed", "level": "error"}, id="wrong setting"),
    ],
)
def test_reason_of_an_exit_code_is_one_json_line(
    here: Certjob, facts: Facts, portal: PortalServer, options: str, zone: str, expected: dict[str, object]
) -> None:
    """Stderr has no other line. -q does not suppress it."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    portal.default = NOT_FOUND

    result = here("run", *options.split(), CERTJOB_LOG_FORMAT="json", CERTJOB_TIME_ZONE=zone)

    (line,) = lines_of(result)
    assert {"code": result.returncode, "event": line["event"], "level": line["level"]} == expected
    assert line["command"] == "certjob run"
    assert line["message"]


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
