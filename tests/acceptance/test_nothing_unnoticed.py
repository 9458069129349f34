"""Nothing goes unnoticed: what needs attention is said by every command that says anything, until it is over."""

import email
import email.policy
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from certjob.database import Connection
from tests.conftest import Certjob
from tests.support.command_line import Finished, run_in_process, today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer

YEARS = timedelta(days=700)
LET_THROUGH = "certjob run --organisation hlf --allow-mass-change"

Play = Callable[..., Finished]


@pytest.fixture
def here(certjob: Certjob, environment: dict[str, str], worker_url: str, tmp_path: Path) -> Play:
    """Run a command with a metrics file, to an end with this code; a ``run`` is the installed one."""

    def play(line: str, code: int = 0, **settings: str) -> Finished:
        ours = {"CERTJOB_DATABASE_URL": worker_url, "CERTJOB_METRICS_FILE": str(tmp_path / "certjob.prom")}
        settings = environment | ours | settings
        if line.startswith("run"):
            finished = certjob(*line.split(), **settings)
        else:
            finished = run_in_process(*line.split(), environment=settings, folder=tmp_path)
        assert finished.returncode == code, finished
        return finished

    return play


@pytest.fixture
def hlf(facts: Facts) -> UUID:
    """An organisation with a portal and a coordinator."""
    organisation = facts.organisation("hlf")
    facts.insert("coordinators", organisation_id=organisation, full_name="Berit", email="b@example.org")
    return organisation


def metric(folder: Path, name: str) -> float | None:
    """A figure of the metrics file; None if it is not there."""
    lines = (folder / "certjob.prom").read_text().splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), None)


def digests(folder: Path) -> list[str]:
    """The texts of the digests that lie in the folder."""
    texts = []
    for file in (folder / "mail" / "new").iterdir():
        message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
        body = message.get_body(("plain",))
        assert body is not None
        if "digest" in str(message["Message-ID"]):
            texts.append(body.get_content())
    return texts


def unnoticed(connection: Connection, statement: str, *parameters: object) -> None:
    """Change what the triggers are not to hear of."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(statement.encode(), parameters)


def a_day_later(connection: Connection) -> None:
    """The nights so far were yesterday's."""
    unnoticed(connection, "UPDATE coordinator_digests SET digest_on = digest_on - 1, reported_on = reported_on - 1")
    unnoticed(connection, "UPDATE job_runs SET as_of = as_of - 1")


def end_by_calendar(connection: Connection, mentors: list[UUID]) -> None:
    """Their certificates ended yesterday, and nobody has changed a fact."""
    yesterday = today() - timedelta(days=1)
    unnoticed(connection, "UPDATE certificates SET expires_on = %s WHERE mentor_id = ANY (%s)", yesterday, mentors)
    unnoticed(connection, "UPDATE mentors SET review_on = %s WHERE id = ANY (%s)", today(), mentors)


def test_everybody_says_that_an_organisation_is_held_until_it_is_over(
    here: Play, connection: Connection, facts: Facts, hlf: UUID, tmp_path: Path, portal: PortalServer
) -> None:
    """A bad import of thirty, beside three certificates that have really ended; then months without a night."""
    mentors = [facts.certified_mentor(hlf, today() + YEARS, full_name=f"Mentor {n}") for n in range(60)]
    assert here("run").stderr == ""
    end_by_calendar(connection, mentors[:3])
    import_with = "UPDATE certificates SET expires_on = %s WHERE mentor_id = ANY (%s)"
    connection.execute(import_with, ("2025-01-31", mentors[30:]))
    a_day_later(connection)

    said = here("run", 3).stderr
    alerts = here("alerts", 3).stdout
    (each,) = json.loads(here("alerts --json", 3).stdout)["held"]

    assert "hlf: 33 mentors would be paused" in said
    assert f"`{LET_THROUGH}`" in said
    assert "33 may be shown on the portal and must not be: Mentor 0 (M1001), " in alerts
    assert LET_THROUGH in alerts
    assert (each["organisation"], each["what"], each["mentors"], each["command"]) == ("hlf", "pauses", 33, LET_THROUGH)
    assert (each["ended_by_calendar"], each["facts_changed"], each["may_be_shown"]) == (3, 30, 33)
    assert {row["mentor_id"] for row in each["some"]} == {str(one) for one in [*mentors[:3], *mentors[30:]]}
    assert here("status -q", 3).stderr == "certjob status: 1 organisation is held; see `certjob alerts`\n"
    assert metric(tmp_path, 'certjob_held_mentors{organisation="hlf",what="pauses"}') == 33
    assert metric(tmp_path, 'certjob_alerts{kind="held"}') == 1
    assert portal.requests == []
    (page,) = digests(tmp_path)
    assert "33 likepersoner ville blitt satt på pause eller skjult (har ventet siden " in page

    # Later that day cron's mail has only what is new, on the next day everything; whichever organisation's run.
    assert here("run", 3).stderr == ""
    facts.certified_mentor(facts.organisation("nhf", portal=None), today() + timedelta(days=30), email=None)
    assert here("run", 3).stderr == "certjob run: 1 reminder was not delivered; see `certjob alerts`\n"
    a_day_later(connection)
    tomorrow = here("run --organisation nhf --no-deliver", 3).stderr
    assert tomorrow.count("\n") == 2
    assert "hlf: 33 mentors would be paused" in tomorrow
    connection.execute("DELETE FROM cert_notification_log WHERE status = 'failed'")

    # The import is corrected: nothing is left in any list, and those who have really ended are hidden.
    connection.execute(import_with, (today() + YEARS, mentors[30:]))
    assert here("run").stderr == ""
    assert sum(not shown for shown in portal.visible.values()) == 3
    here("alerts")
    here("status -q")
    assert metric(tmp_path, 'certjob_held_mentors{organisation="hlf",what="pauses"}') is None
    assert metric(tmp_path, 'certjob_alerts{kind="held"}') == 0

    # After a gap of months all have really ended, and the alert says so.
    end_by_calendar(connection, mentors)
    here("run --no-deliver", 3)
    (each,) = json.loads(here("alerts --json", 3).stdout)["held"]
    assert (each["ended_by_calendar"], each["facts_changed"], each["may_be_shown"]) == (57, 0, 57)
    assert len(each["some"]) == 50

    # It is let through, while another night, which holds it, is about to write that down.
    (row,) = connection.execute("SELECT * FROM held_reviews").fetchall()
    here(LET_THROUGH.removeprefix("certjob "))
    marks = ", ".join(["%s"] * len(row))
    connection.execute(f"INSERT INTO held_reviews VALUES ({marks})".encode(), row)
    assert sum(not shown for shown in portal.visible.values()) == 60
    for line in ("alerts", "status -q", "run"):
        here(line)
    assert facts.rows("SELECT count(*) FROM held_reviews") == [(0,)]


def test_everybody_says_whom_no_night_can_review_and_how_long_mail_waits(
    here: Play, connection: Connection, facts: Facts, hlf: UUID, tmp_path: Path
) -> None:
    """A rule of the database refuses a pause, and the mail server is dead; until both are over."""
    mentor = facts.certified_mentor(hlf, today() - timedelta(days=20), full_name="Ola Hansen")
    for _ in range(4):
        facts.certified_mentor(hlf, today() + timedelta(days=30))
    connection.execute("ALTER TABLE mentor_pauses ADD CONSTRAINT no_pause CHECK (actor <> 'certjob') NOT VALID")
    dead = {"CERTJOB_NOTIFY_URL": "smtp://127.0.0.1:1"}

    assert str(mentor) in here("run", 3, **dead).stderr

    assert here("alerts", 3).stdout.startswith("Not reviewed: Ola Hansen (M1001 of hlf), since ")
    assert here("status -q", 3).stderr == "certjob status: 1 mentor could not be reviewed; see `certjob alerts`\n"
    document = json.loads(here("alerts --json", 3).stdout)
    assert [(row["mentor_id"], row["member_no"]) for row in document["never_reviewed"]] == [(str(mentor), "M1001")]
    assert document["waiting_mail"] == [], "on the first day it is only the run's business"
    assert metric(tmp_path, 'certjob_alerts{kind="never_reviewed"}') == 1

    for table in ("cert_notification_log", "coordinator_digests"):
        connection.execute(f"UPDATE {table} SET queued_at = queued_at - interval '25 hours'".encode())
    here("run", 3, **dead)

    alerts = here("alerts", 3).stdout
    assert "\nMail waits: 4 reminders, the oldest, since " in alerts
    assert "the mail server cannot be used: Connection refused" in alerts
    assert here("status -q", 3).stderr == (
        "certjob status: 1 mentor could not be reviewed, 4 reminders have waited for more than a day, 1 digest has "
        "waited for more than a day; see `certjob alerts`\n"
    )
    document = json.loads(here("alerts --json", 3).stdout)
    assert [(row["what"], row["number"]) for row in document["waiting_mail"]] == [("reminders", 4), ("digests", 1)]
    assert metric(tmp_path, 'certjob_waiting_mail{what="reminders"}') == 4
    assert metric(tmp_path, 'certjob_waiting_mail{what="digests"}') == 1

    here("run", 3)
    (page,) = digests(tmp_path)
    assert "* Ola Hansen (M1001), siden " in page
    assert here("run", 3).stderr == "", "said already today"
    connection.execute("ALTER TABLE mentor_pauses DROP CONSTRAINT no_pause")
    for line in ("resync M1001", "alerts", "status -q", "run"):
        here(line)
    assert metric(tmp_path, 'certjob_waiting_mail{what="reminders"}') == 0
    assert facts.rows("SELECT count(*) FROM review_problems") == [(0,)]
