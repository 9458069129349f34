"""Logs: warnings only unless -v is given, with ids and without people."""

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from certjob import __version__
from tests.cli.conftest import LONG_AGO, SOON
from tests.conftest import Certjob
from tests.support.command_line import SECRET, on_terminal, without_escapes
from tests.support.facts import Facts
from tests.support.portal_answers import answer
from tests.support.portal_server import PortalServer

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
