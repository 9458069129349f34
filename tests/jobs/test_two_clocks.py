"""This machine's clock and the database server's: on different days nobody is paused, hidden or mailed."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time

from certjob.database.clocks import Clocks
from certjob.errors import ClocksDisagreeError
from tests.conftest import Certjob
from tests.support.command_line import Finished, assert_one_line, today
from tests.support.facts import Facts
from tests.support.nights import night
from tests.support.portal_server import PortalServer

Command = Callable[..., Finished]


@pytest.fixture
def command(here: Certjob, ways_out: dict[str, str]) -> Command:
    """Run a command on a machine whose clock is wrong by so many days; the database server's is right."""

    def run(*arguments: str, wrong_by: int = 0) -> Finished:
        with freeze_time(datetime.now(UTC) + timedelta(days=wrong_by), tick=True) if wrong_by else nullcontext():
            return here(*arguments, **ways_out)

    return run


def mails(folder: Path) -> int:
    return len(list(folder.glob("mail/new/*")))


@pytest.mark.parametrize(
    ("arguments", "days"), [("run", 300), ("run --dry-run", -300), ("resync M1001", -300), ("reconcile", 300)]
)
def test_a_run_on_another_day_than_the_databases_is_refused(
    command: Command, facts: Facts, portal: PortalServer, tmp_path: Path, arguments: str, days: int
) -> None:
    """Both times are said, and nothing is done: such a small organisation is below every guard."""
    facts.certified_mentor(facts.organisation(), today() + timedelta(days=100))

    shown_on = (datetime.now(UTC) + timedelta(days=days)).astimezone(ZoneInfo("Europe/Oslo")).date()
    name, *options = arguments.split()
    result = command(name, *options, wrong_by=days)

    words = (f"this machine's clock shows {shown_on} ", f"the database server's {today()} ", "correct the wrong one")
    assert_one_line(result, *words, f"--accept-date {shown_on}", code=2, command=f"certjob {name}")
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == facts.rows("SELECT count(*) FROM job_runs") == [(0,)]
    assert (portal.requests, mails(tmp_path)) == ([], 0)


def test_accepted_date_is_that_of_this_machine(command: Command, facts: Facts) -> None:
    """The server's clock may be the wrong one, or an earlier run's; --as-of needs no clock."""
    facts.certified_mentor(facts.organisation(), today() + timedelta(days=100))
    here, later = str(today()), str(today() + timedelta(days=300))

    plan = command("run", "--dry-run", "--as-of", "2036-01-01", wrong_by=300)
    ahead = command("run", "--accept-date", later, "--json", wrong_by=300)
    earlier = command("run")
    commands = ("run", "deliver", "reconcile", "resync M1001")
    mistaken = {each.split()[0]: command(*each.split(), "--accept-date", later) for each in commands}
    accepted = command("run", "--accept-date", here)

    assert (plan.returncode, plan.stderr) == (0, "")
    assert json.loads(ahead.stdout)["mentors"]["paused"] == 1
    assert_one_line(earlier, f"`certjob run --accept-date {here}`", code=2)
    for name, result in mistaken.items():
        words = (f"--accept-date is {later}", f"this machine's date is {here}")
        assert_one_line(result, *words, code=2, command=f"certjob {name}")
    assert accepted.returncode == 0
    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(0,)]


def test_deliver_pushes_and_sends_no_mail_on_a_day_that_cannot_be_believed(
    command: Command, facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """A push goes by no date, a reminder does. It is said once for each reason, not every 15 minutes.

    The clocks disagree; then both went back, or a night was run on a wrong date; at last the mail goes out.
    """
    organisation_id, in_a_month = facts.organisation(), today() + timedelta(days=30)
    for days in (-1, 7):
        facts.certified_mentor(organisation_id, today() + timedelta(days=days))
    night(facts.connection, today(), deliver=False)

    first, second = (command("deliver", wrong_by=300) for _ in range(2))
    wrong = {"command": "run", "host": "elsewhere", "version": "1", "outcome": "ok", "finished_at": datetime.now(UTC)}
    run_id = facts.insert("job_runs", id=uuid4(), as_of=in_a_month, **wrong)
    third = command("deliver")

    assert_one_line(first, "mail: this machine's clock shows ", "no mail is sent", code=3, command="certjob deliver")
    assert (second.returncode, second.stderr) == (0, "")
    words = (f"mail: today would be {today()}", f"run for {in_a_month}", "no mail")
    assert_one_line(third, *words, code=3, command="certjob deliver")
    assert list(portal.visible.values()) == [False]
    assert mails(tmp_path) == 0
    facts.connection.execute("DELETE FROM job_runs WHERE id = %s", (run_id,))
    assert command("deliver").returncode == 0
    assert mails(tmp_path) == 2


@pytest.mark.parametrize(
    ("machine", "server", "agree"),
    [
        ("2026-01-15 12:00", "2026-01-15 22:59", True),  # hours apart, one day: `check` warns
        ("2026-01-15 22:58", "2026-01-15 23:07", True),  # two days, nine minutes apart
        ("2026-01-15 22:58", "2026-01-15 23:09", False),
        ("2026-01-15 23:09", "2026-01-15 22:58", False),
        ("2026-01-15 12:00", "2027-01-15 12:00", False),
    ],
)
def test_a_few_minutes_around_midnight_are_no_other_day(machine: str, server: str, agree: bool) -> None:
    """The day is that of CERTJOB_TIME_ZONE: here midnight is 23:00 UTC."""
    machine_at, server_at = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (machine, server))

    with nullcontext() if agree else pytest.raises(ClocksDisagreeError, match="2026-01-1"):
        Clocks(machine_at=machine_at, server_at=server_at).require_same_day(timezone(timedelta(hours=1)))
