"""Nothing goes unnoticed: what needs attention is said by every command that says anything, until it is over."""

import json
from collections.abc import Callable
from datetime import timedelta
from mailbox import Maildir
from pathlib import Path
from uuid import UUID

import pytest

from certjob.database import Connection
from tests.conftest import Certjob
from tests.support.command_line import Finished, today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer

Play = Callable[..., str]


@pytest.fixture
def play(certjob: Certjob, here: Certjob, environment: dict[str, str], worker_url: str, tmp_path: Path) -> Play:
    """Run a command as certjob_worker to an end with this code; return what it said.

    A ``run`` is the installed one.
    """
    ours = environment | {"CERTJOB_DATABASE_URL": worker_url}

    def play(line: str, code: int = 0, **settings: str) -> str:
        finished: Finished = (certjob if line.startswith("run") else here)(*line.split(), **ours | settings)
        assert finished.returncode == code, finished
        return finished.stdout + finished.stderr

    return play


@pytest.fixture
def hlf(facts: Facts) -> UUID:
    """An organisation with a portal and a coordinator."""
    organisation = facts.organisation("hlf")
    facts.insert("coordinators", organisation_id=organisation, full_name="Berit", email="b@example.org")
    return organisation


def the_digest(folder: Path) -> str:
    """The text of the one digest that lies in the folder."""
    (digest,) = (mail for mail in Maildir(folder / "mail") if "digest" in mail["Message-ID"])
    return digest.get_payload(0).get_payload(decode=True).decode()  # type: ignore[union-attr]


def unnoticed(connection: Connection, statement: str, *parameters: object) -> None:
    """Change what the triggers are not to hear of."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(statement.encode(), parameters)


def a_day_later(connection: Connection) -> None:
    """The nights so far were yesterday's."""
    unnoticed(connection, "UPDATE coordinator_digests SET digest_on = digest_on - 1")
    unnoticed(connection, "UPDATE job_runs SET as_of = as_of - 1")


def end_by_calendar(connection: Connection, mentors: list[UUID]) -> None:
    """Their certificates ended yesterday, as the last review foresaw."""
    yesterday = today() - timedelta(days=1)
    unnoticed(connection, "UPDATE certificates SET expires_on = %s WHERE mentor_id = ANY (%s)", yesterday, mentors)
    unnoticed(
        connection,
        "UPDATE mentors SET review_on = %s, certified_until = %s WHERE id = ANY (%s)",
        today(),
        yesterday,
        mentors,
    )


def test_everybody_says_that_an_organisation_is_held_until_it_is_over(
    play: Play, connection: Connection, facts: Facts, hlf: UUID, tmp_path: Path, portal: PortalServer
) -> None:
    """A bad import of thirty, beside three certificates that have really ended; then months without a run."""
    in_years = today() + timedelta(days=700)
    mentors = [facts.certified_mentor(hlf, in_years, full_name=f"Mentor {n}") for n in range(60)]
    assert play("run") == ""
    end_by_calendar(connection, mentors[:3])
    import_with = "UPDATE certificates SET expires_on = %s WHERE mentor_id = ANY (%s)"
    connection.execute(import_with, ("2025-01-31", mentors[30:]))
    a_day_later(connection)

    said, alerts = play("run", 3), play("alerts", 3)
    (each,) = json.loads(play("alerts --json", 3))["alerts"]

    assert "hlf: 30 mentors would be paused" in said
    assert "`certjob run --allow hlf=30`" in said
    assert "certjob run --allow hlf=30" in alerts
    assert (each["organisation"], each["cause"], each["number"]) == ("hlf", "pauses", 30)
    assert play("status -q", 3) == "certjob status: 1 organisation is held; see `certjob alerts`\n"
    assert len(portal.requests) == 3
    assert "blir 30 likepersoner satt på pause eller skjult." in the_digest(tmp_path)

    # Later that day cron's mail has only what is new, on the next day everything; whichever organisation's run.
    assert play("run", 3) == ""
    facts.certified_mentor(facts.organisation("nhf", portal=None), today() + timedelta(days=30), email=None)
    assert play("run", 3) == "certjob run: 1 reminder was not delivered; see `certjob alerts`\n"
    a_day_later(connection)
    tomorrow = play("run --organisation nhf", 3)
    assert (tomorrow.count("\n"), "hlf: 30 mentors would be paused" in tomorrow) == (2, True)
    connection.execute("DELETE FROM cert_notification_log WHERE status = 'failed'")

    # The import is corrected: nothing is left in any list.
    connection.execute(import_with, (in_years, mentors[30:]))
    assert play("run") == play("alerts") == play("status -q") == ""
    assert sum(not shown for shown in portal.visible.values()) == 3

    # After a gap of months all have ended, and the clock may be wrong.
    unnoticed(connection, "UPDATE job_runs SET as_of = as_of - 60")
    unnoticed(connection, "UPDATE guard_counts SET at = at - interval '60 days'")
    end_by_calendar(connection, mentors)
    play("run", 3)
    (each,) = json.loads(play("alerts --json", 3))["alerts"]
    assert (each["alert_id"], each["number"]) == ("hlf:held:pauses", 57)

    # It is let through, while another night, which holds it, is about to write that down.
    (row,) = connection.execute("SELECT * FROM held_reviews").fetchall()
    play("run --allow hlf=57")
    connection.execute(f"INSERT INTO held_reviews VALUES ({', '.join(['%s'] * len(row))})".encode(), row)
    assert sum(not shown for shown in portal.visible.values()) == 60
    assert play("alerts") == play("status -q") == play("run") == ""
    assert facts.rows("SELECT count(*) FROM held_reviews") == [(0,)]


def test_everybody_says_whom_no_night_can_review_and_how_long_mail_waits(
    play: Play, connection: Connection, facts: Facts, hlf: UUID, tmp_path: Path
) -> None:
    """A rule of the database refuses a pause, and the mail server is dead; until both are over."""
    mentor = facts.certified_mentor(hlf, today() - timedelta(days=20), full_name="Ola Hansen")
    for _ in range(4):
        facts.certified_mentor(hlf, today() + timedelta(days=30))
    connection.execute("ALTER TABLE mentor_pauses ADD CONSTRAINT no_pause CHECK (actor <> 'certjob') NOT VALID")
    dead = {"CERTJOB_NOTIFY_URL": "smtp://127.0.0.1:1"}

    assert str(mentor) in play("run", 3, **dead)

    line = "Not reviewed — mentor may still be visible on portal: hlf:never_reviewed:M1001, Ola Hansen, since "
    assert play("alerts", 3).startswith(line)
    assert play("status -q", 3) == "certjob status: 1 mentor could not be reviewed; see `certjob alerts`\n"
    document = json.loads(play("alerts --json", 3))
    # On the first day mail that waits is only the run's business.
    assert [(row["kind"], row["mentor_id"]) for row in document["alerts"]] == [("never_reviewed", str(mentor))]

    for table in ("cert_notification_log", "coordinator_digests"):
        connection.execute(f"UPDATE {table} SET queued_at = queued_at - interval '25 hours'".encode())
    play("run", 3, **dead)

    assert play("alerts", 3).count("Reminder has waited for more than a day: ") == 4
    assert play("status -q", 3) == (
        "certjob status: 1 mentor could not be reviewed, 4 reminders have waited for more than a day, 1 digest has "
        "waited for more than a day; see `certjob alerts`\n"
    )
    alerts = json.loads(play("alerts --json", 3))["alerts"]
    waiting = [row for row in alerts if row["kind"].startswith("waiting_")]
    assert [row["kind"] for row in waiting] == ["waiting_reminders"] * 4 + ["waiting_digests"]
    assert all("the mail server cannot be used: Connection refused" in row["error"] for row in waiting)

    play("run", 3)
    assert "* Ola Hansen (M1001), siden " in the_digest(tmp_path)
    assert play("run", 3) == "", "said already today"
    facts.organisation("nhf", portal=None)
    play("run --organisation nhf", 3)  # whichever organisation's run: its own review was well
    connection.execute("ALTER TABLE mentor_pauses DROP CONSTRAINT no_pause")
    for line in ("resync M1001", "alerts", "status -q", "run"):
        play(line)
    assert facts.rows("SELECT count(*) FROM review_problems") == [(0,)]
