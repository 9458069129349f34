"""The commands run, alerts and status, and the digest report every problem until it is over."""

import json
from collections.abc import Callable
from datetime import timedelta
from mailbox import Maildir
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob.database import Connection
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer

Run = Callable[..., str]


@pytest.fixture
def run(certjob: Certjob, here: Certjob, environment: dict[str, str], worker_url: str) -> Run:
    """Run a command as certjob_worker; return its output. Only ``run`` starts a process."""

    def run(line: str, code: int = 0, **settings: str) -> str:
        settings = environment | {"CERTJOB_DATABASE_URL": worker_url} | settings
        finished = (certjob if line.startswith("run") else here)(*line.split(), **settings)
        assert finished.returncode == code, finished
        return finished.stdout + finished.stderr

    return run


@pytest.fixture
def hlf(facts: Facts) -> UUID:
    """An organisation with a portal and a coordinator."""
    organisation = facts.organisation("hlf")
    facts.insert("coordinators", organisation_id=organisation, full_name="Berit", email="b@example.org")
    return organisation


def alerts(run: Run) -> list[dict[str, Any]]:
    return json.loads(run("alerts --json", 3))["alerts"]  # type: ignore[no-any-return]


def digest(folder: Path) -> str:
    """Return the text of the only digest in the Maildir."""
    (message,) = (mail for mail in Maildir(folder / "mail") if "digest" in mail["Message-ID"])
    return message.get_payload(0).get_payload(decode=True).decode()  # type: ignore[union-attr]


def test_held_organisation_is_reported_until_its_import_is_corrected(
    run: Run, connection: Connection, facts: Facts, hlf: UUID, tmp_path: Path, portal: PortalServer
) -> None:
    """A wrong import expires 30 of 60 mentors. The report comes once a day."""
    mentors = [facts.certified_mentor(hlf, today() + timedelta(days=700)) for _ in range(60)]
    run("run")
    wrong_import = "UPDATE certificates SET expires_on = %s WHERE mentor_id = ANY (%s)"
    connection.execute(wrong_import, ("2025-01-31", mentors[30:]))

    first, second = run("run", 3), run("run", 3)
    connection.execute("UPDATE job_runs SET as_of = as_of - 1")
    next_day = run("run", 3)

    assert "hlf: 30 mentors would be paused" in first
    assert "`certjob run --allow hlf=30`" in first
    assert (second, next_day) == ("", first)
    (alert,) = alerts(run)
    assert (alert["organisation"], alert["cause"], alert["number"]) == ("hlf", "pauses", 30)
    assert run("status -q", 3) == "certjob status: 1 organisation is held; see `certjob alerts`\n"
    assert "blir 30 likepersoner satt på pause eller skjult." in digest(tmp_path)
    assert portal.requests == []

    connection.execute(wrong_import, (today() + timedelta(days=700), mentors[30:]))
    assert run("run") == run("alerts") == run("status -q") == ""


def test_mentor_whom_no_run_can_review_is_reported_until_a_run_can(
    run: Run, connection: Connection, facts: Facts, hlf: UUID, tmp_path: Path
) -> None:
    """A constraint of the database rejects the pause of a mentor whose certificate has expired."""
    mentor = facts.certified_mentor(hlf, today() - timedelta(days=20), full_name="Ola Hansen")
    connection.execute("ALTER TABLE mentor_pauses ADD CONSTRAINT no_pause CHECK (actor <> 'certjob') NOT VALID")

    assert str(mentor) in run("run", 3)

    line = "Not reviewed — mentor may still be visible on portal: hlf:never_reviewed:M1001, Ola Hansen, since "
    assert run("alerts", 3).startswith(line)
    assert run("status -q", 3) == "certjob status: 1 mentor could not be reviewed; see `certjob alerts`\n"
    assert "* Ola Hansen (M1001), siden " in digest(tmp_path)

    connection.execute("ALTER TABLE mentor_pauses DROP CONSTRAINT no_pause")
    for command in ("resync M1001", "alerts", "status -q", "run"):
        run(command)
    assert facts.rows("SELECT count(*) FROM review_problems") == [(0,)]


def test_mail_that_waits_is_reported_after_a_day(run: Run, connection: Connection, facts: Facts, hlf: UUID) -> None:
    """No one listens at the mail server's port."""
    for _ in range(4):
        facts.certified_mentor(hlf, today() + timedelta(days=30))
    down = {"CERTJOB_NOTIFY_URL": "smtp://127.0.0.1:1"}
    run("run", 3, **down)
    assert run("alerts") == "", "on the first day only the run reports it"

    connection.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '25 hours'")
    run("run", 3, **down)

    assert [alert["kind"] for alert in alerts(run)] == ["waiting_reminders"] * 4
    assert all("the mail server cannot be used: Connection refused" in alert["error"] for alert in alerts(run))
    assert "4 reminders have waited for more than a day" in run("status -q", 3)
    run("run")
    assert run("alerts") == ""
