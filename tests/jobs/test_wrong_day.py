"""Wrong clocks and dates: on a date that is not trusted, certjob pauses, shows and mails no one."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time

from certjob.database.clocks import Clocks
from certjob.errors import ClocksDisagreeError
from tests.conftest import Certjob
from tests.support.command_line import Finished, assert_one_line, run_in_process, today
from tests.support.facts import Facts
from tests.support.nights import night
from tests.support.portal_server import PortalServer
from tests.support.scene import YESTERDAY, Scene

Command = Callable[..., Finished]
PAUSES = "SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL"


@pytest.fixture
def command(here: Certjob, delivery_settings: dict[str, str]) -> Command:
    """Run a command while the clock of the machine is ``wrong_by`` days ahead of the database server's."""

    def run(*arguments: str, wrong_by: int = 0) -> Finished:
        with freeze_time(datetime.now(UTC) + timedelta(days=wrong_by), tick=True) if wrong_by else nullcontext():
            return here(*arguments, **delivery_settings)

    return run


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    """A mentor with a certificate for the next 100 days."""
    return facts.certified_mentor(facts.organisation(), today() + timedelta(days=100))


@pytest.mark.parametrize("arguments", ["run", "resync M1001", "reconcile"])
@pytest.mark.usefixtures("mentor")
def test_command_is_rejected_when_the_clocks_disagree(
    command: Command, facts: Facts, portal: PortalServer, tmp_path: Path, arguments: str
) -> None:
    """The error has both dates. No guard would hold the changes of such a small organisation."""
    shown_on = (datetime.now(UTC) + timedelta(days=300)).astimezone(ZoneInfo("Europe/Oslo")).date()
    name, *mentor_numbers = arguments.split()

    result = command(name, *mentor_numbers, wrong_by=300)

    words = (f"this machine's clock shows {shown_on} ", f"the database server's {today()} ", "correct the wrong one")
    assert_one_line(result, *words, f"--accept-date {shown_on}", code=2, command=f"certjob {name}")
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == facts.rows("SELECT count(*) FROM job_runs") == [(0,)]
    assert (portal.requests, [*tmp_path.glob("mail/new/*")]) == ([], [])


@pytest.mark.parametrize("dies", [False, True], ids=["finished", "died"])
@pytest.mark.usefixtures("mentor")
def test_run_after_a_later_date_needs_consent(command: Command, facts: Facts, dies: bool) -> None:
    """A run of 300 days ahead, with consent, has paused the mentor. One that died may have written as much."""
    here, later = str(today()), str(today() + timedelta(days=300))
    ahead = command("run", "--accept-date", later, "--json", wrong_by=300)
    assert json.loads(ahead.stdout)["mentors"]["paused"] == 1
    if dies:
        facts.connection.execute("UPDATE job_runs SET finished_at = NULL, outcome = NULL")

    rejected = command("run")
    accepted = command("run", "--accept-date", here)

    words = (f"the date is {here}, but an earlier run used {later}", f"`certjob run --accept-date {here}`")
    assert_one_line(rejected, *words, code=2)
    assert (accepted.returncode, facts.rows(PAUSES)) == (0, [(0,)])


@pytest.mark.usefixtures("mentor")
def test_accept_date_must_be_the_date_of_this_machine(command: Command) -> None:
    """Consent is for the date that someone has seen."""
    later = today() + timedelta(days=300)

    result = command("run", "--accept-date", str(later))

    assert_one_line(result, f"--accept-date is {later}", f"this machine's date is {today()}", code=2)


def test_deliver_sends_hides_and_no_mail_when_the_clocks_disagree(
    command: Command, facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """It prints the reason once. The mails go out once the date is right."""
    organisation_id = facts.organisation()
    for days in (-1, 7):
        facts.certified_mentor(organisation_id, today() + timedelta(days=days))
    night(facts.connection, today(), deliver=False)

    first, second = (command("deliver", wrong_by=300) for _ in range(2))

    assert_one_line(first, "mail: this machine's clock shows ", "no mail is sent", code=3, command="certjob deliver")
    assert (second.returncode, second.stderr) == (3, "")
    assert (list(portal.visible.values()), [*tmp_path.glob("mail/new/*")]) == ([False], [])
    assert command("deliver").returncode == 0
    assert len([*tmp_path.glob("mail/new/*")]) == 2


def test_deliver_before_the_date_of_a_run_sends_only_hides(scene: Scene) -> None:
    """On that date the certificate of the paused mentor would be in force again, so it reviews no one."""
    scene.night()
    scene.queue(scene.expired(), visible=False)
    scene.queue(scene.certified(), visible=True)

    report = scene.deliver(scene.portal, today=YESTERDAY)

    assert scene.portal.values == [False]
    assert [stop.code for stop in report.stopped] == ["clocks_disagree"]


@pytest.mark.parametrize(
    ("machine", "server", "agree"),
    [
        pytest.param("2026-01-15 12:00", "2026-01-15 22:59", True, id="hours_apart_on_one_day"),
        pytest.param("2026-01-15 22:58", "2026-01-15 23:07", True, id="nine_minutes_around_midnight"),
        pytest.param("2026-01-15 22:58", "2026-01-15 23:09", False, id="eleven_minutes_behind"),
        pytest.param("2026-01-15 23:09", "2026-01-15 22:58", False, id="eleven_minutes_ahead"),
    ],
)
def test_clocks_agree_on_one_day_or_within_ten_minutes(machine: str, server: str, agree: bool) -> None:
    """The day is that of CERTJOB_TIME_ZONE: here midnight is 23:00 UTC."""
    machine_at, server_at = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (machine, server))

    with nullcontext() if agree else pytest.raises(ClocksDisagreeError, match="2026-01-1"):
        Clocks(machine_at=machine_at, server_at=server_at).require_same_day(timezone(timedelta(hours=1)))


# CERTJOB_TIME_ZONE decides which day it is. freezegun freezes the clock of the whole command.


RunAt = Callable[..., Any]


@pytest.fixture
def run_at(environment: dict[str, str], tmp_path: Path) -> RunAt:
    """Run certjob at a moment in UTC; return its document."""

    def run(moment: str, *arguments: str, **settings: str) -> Any:
        zone = ZoneInfo(settings.get("CERTJOB_TIME_ZONE", "Europe/Oslo"))
        today = datetime.fromisoformat(moment).replace(tzinfo=UTC).astimezone(zone).date()
        words = ("run", "--json", "--accept-date", str(today), *arguments)
        with freeze_time(moment):
            return json.loads(run_in_process(*words, environment=environment | settings, folder=tmp_path).stdout)

    return run


@pytest.mark.parametrize(
    ("moment", "today"),
    [  # midnight in Oslo is 23:00 UTC in winter and 22:00 UTC in summer; summer time begins on 29 March
        ("2026-01-15 22:59:59", date(2026, 1, 15)),
        ("2026-03-28 23:00", date(2026, 3, 29)),
        ("2026-03-29 21:59:59", date(2026, 3, 29)),
    ],
)
def test_certificate_is_in_force_to_the_end_of_its_last_day_in_oslo(
    run_at: RunAt, facts: Facts, moment: str, today: date
) -> None:
    organisation_id = facts.organisation(portal=None)
    for days in (-1, 0, 1):
        facts.certified_mentor(organisation_id, today + timedelta(days=days))

    document = run_at(moment)

    assert (document["today"], document["mentors"]["paused"]) == (today.isoformat(), 1)
    statuses = facts.rows("SELECT status FROM certificates ORDER BY expires_on")
    assert statuses == [("expired",), ("expiring",), ("expiring",)]
    assert facts.rows("SELECT as_of FROM certificate_transitions UNION SELECT as_of FROM job_runs") == [(today,)]


def test_day_is_that_of_the_configured_time_zone(run_at: RunAt) -> None:
    assert run_at("2026-01-15 23:30", CERTJOB_TIME_ZONE="UTC")["today"] == "2026-01-15"
    assert run_at("2026-01-15 12:00", CERTJOB_TIME_ZONE="Pacific/Kiritimati")["today"] == "2026-01-16"
