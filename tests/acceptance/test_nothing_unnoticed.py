"""Nothing goes unnoticed: what needs attention is said by every command that says anything, until it is over."""

import email
import email.policy
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from certjob.database import Connection
from tests.conftest import Certjob
from tests.support.command_line import Finished, today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer

YEARS = timedelta(days=700)

Play = Callable[..., Finished]


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server


@pytest.fixture
def here(certjob: Certjob, portal: PortalServer, tmp_path: Path) -> Play:
    """The installed command with a portal, a mail folder and a metrics file."""

    def play(*arguments: str, **settings: str) -> Finished:
        ours = {
            "CERTJOB_PORTAL_URL": portal.url,
            "CERTJOB_PORTAL_KEY": portal.key,
            "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
            "CERTJOB_MAIL_FROM": "HLF <post@hlf.example>",
            "CERTJOB_METRICS_FILE": str(tmp_path / "certjob.prom"),
        }
        return certjob(*arguments, **(ours | settings))

    return play


def metric(folder: Path, name: str) -> float | None:
    """A figure of the metrics file; None if it is not there."""
    for line in (folder / "certjob.prom").read_text().splitlines():
        if line.startswith(f"{name} "):
            return float(line.rsplit(" ", 1)[1])
    return None


def digests(folder: Path) -> list[str]:
    """The texts of the mails that lie in the folder and that no reminder is, oldest first."""
    texts = []
    for file in sorted((folder / "mail" / "new").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
        body = message.get_body(("plain",))
        assert body is not None
        if "digest" in str(message["Message-ID"]):
            texts.append(body.get_content())
    return texts


def coordinator(connection: Connection, organisation: UUID) -> None:
    connection.execute(
        "INSERT INTO coordinators (organisation_id, full_name, email, locale)"
        " VALUES (%s, 'Berit', 'b@example.org', 'nb')",
        (organisation,),
    )


def a_day_later(connection: Connection) -> None:
    """The nights so far were yesterday's."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute("UPDATE coordinator_digests SET digest_on = digest_on - 1, reported_on = reported_on - 1")
        connection.execute("UPDATE job_runs SET as_of = as_of - 1")


def end_by_calendar(connection: Connection, mentors: list[UUID]) -> None:
    """Their certificates ended yesterday, and nobody has changed a fact: the triggers do not hear of it."""
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        connection.execute(
            "UPDATE certificates SET expires_on = %s WHERE mentor_id = ANY (%s)",
            (today() - timedelta(days=1), mentors),
        )
        connection.execute("UPDATE mentors SET review_on = %s WHERE id = ANY (%s)", (today(), mentors))


@pytest.fixture
def programme(here: Play, connection: Connection, facts: Facts) -> list[UUID]:
    """Sixty mentors of an organisation with a portal and a coordinator, all of them certified, after a quiet night."""
    organisation = facts.organisation("hlf")
    coordinator(connection, organisation)
    mentors = [facts.certified_mentor(organisation, today() + YEARS, full_name=f"Mentor {n}") for n in range(60)]
    first = here("run")
    assert (first.returncode, first.stderr) == (0, "")
    return mentors


def bad_import(connection: Connection, mentors: list[UUID]) -> None:
    connection.execute("UPDATE certificates SET expires_on = '2025-01-31' WHERE mentor_id = ANY (%s)", (mentors,))


COMMAND = "certjob run --organisation hlf --allow-mass-change"


def held(here: Play, connection: Connection, programme: list[UUID]) -> Finished:
    """A night after a bad import of thirty, with three certificates that have really ended."""
    end_by_calendar(connection, programme[:3])
    bad_import(connection, programme[30:])
    a_day_later(connection)
    return here("run")


class TestHeld:
    """An organisation that the guards hold."""

    def test_everybody_says_so(
        self,
        here: Play,
        connection: Connection,
        facts: Facts,
        programme: list[UUID],
        tmp_path: Path,
        portal: PortalServer,
    ) -> None:
        """run, alerts with who may be shown, the digest, status, the metrics; every day, until it is let through."""
        night = held(here, connection, programme)

        assert night.returncode == 3
        assert "hlf: 33 mentors would be paused" in night.stderr
        assert f"`{COMMAND}`" in night.stderr
        alerts, document, status = here("alerts"), here("alerts", "--json"), here("status", "-q")
        assert (alerts.returncode, document.returncode, status.returncode) == (3, 3, 3)
        for said in ("33 mentors would be paused", "3 have ended by the calendar", COMMAND):
            assert said in alerts.stdout
        assert "30 have facts that were changed since the last review" in alerts.stdout
        assert "33 may be shown on the portal and must not be: Mentor 0 (M1001), " in alerts.stdout
        (each,) = json.loads(document.stdout)["held"]
        assert (each["organisation"], each["what"], each["mentors"], each["command"]) == ("hlf", "pauses", 33, COMMAND)
        assert (each["ended_by_calendar"], each["facts_changed"], each["may_be_shown"]) == (3, 30, 33)
        assert {row["mentor_id"] for row in each["some"]} == {str(one) for one in [*programme[:3], *programme[30:]]}
        assert status.stderr == "certjob status: 1 organisation is held; see `certjob alerts`\n"
        assert metric(tmp_path, 'certjob_held_mentors{organisation="hlf",what="pauses"}') == 33
        assert metric(tmp_path, 'certjob_alerts{kind="held"}') == 1
        assert portal.requests == []
        (page,) = digests(tmp_path)
        assert "33 likepersoner ville blitt satt på pause eller skjult (har ventet siden " in page
        assert "3 likepersoner har sertifikater som har gått ut på vanlig måte." in page
        assert "  - Mentor 0 (M1001)\n  - Mentor 1 (M1002)\n" in page

        # Later that day cron's mail has only what is new, on the next day everything; whichever organisation's run.
        assert (again := here("run")).returncode == 3
        assert again.stderr == ""
        facts.certified_mentor(facts.organisation("nhf", portal=None), today() + timedelta(days=30), email=None)
        assert (more := here("run")).returncode == 3
        assert more.stderr == "certjob run: 1 reminder was not delivered; see `certjob alerts`\n"
        a_day_later(connection)
        assert (tomorrow := here("run", "--organisation", "nhf", "--no-deliver")).returncode == 3
        assert tomorrow.stderr.count("\n") == 2
        assert "hlf: 33 mentors would be paused" in tomorrow.stderr
        connection.execute("DELETE FROM cert_notification_log WHERE status = 'failed'")

        # It is let through, while another night, which holds it, is about to write that down.
        rows = connection.execute("SELECT * FROM held_reviews").fetchall()
        assert here(*COMMAND.split()[1:]).returncode == 0
        marks = ", ".join(["%s"] * len(rows[0]))
        connection.execute(f"INSERT INTO held_reviews VALUES ({marks})".encode(), rows[0])
        assert sum(not shown for shown in portal.visible.values()) == 33
        assert here("alerts").returncode == here("status", "-q").returncode == here("run").returncode == 0
        assert connection.execute("SELECT count(*) FROM held_reviews").fetchall() == [(0,)]

    def test_it_is_over_when_the_import_is_corrected(
        self, here: Play, connection: Connection, programme: list[UUID], tmp_path: Path, portal: PortalServer
    ) -> None:
        """Nothing is left in any list, and those whose certificates have really ended are hidden."""
        held(here, connection, programme)
        connection.execute(
            "UPDATE certificates SET expires_on = %s WHERE mentor_id = ANY (%s)", (today() + YEARS, programme[30:])
        )

        night = here("run")

        assert (night.returncode, night.stderr) == (0, "")
        assert sum(not shown for shown in portal.visible.values()) == 3
        assert here("alerts").returncode == here("status", "-q").returncode == 0
        assert metric(tmp_path, 'certjob_held_mentors{organisation="hlf",what="pauses"}') is None
        assert metric(tmp_path, 'certjob_alerts{kind="held"}') == 0

    def test_a_gap_of_months_is_the_calendar(self, here: Play, connection: Connection, programme: list[UUID]) -> None:
        """Nothing was imported: all of them have really ended, and the alert says so."""
        end_by_calendar(connection, programme)

        night = here("run", "--no-deliver")

        assert night.returncode == 3
        (each,) = json.loads(here("alerts", "--json").stdout)["held"]
        assert (each["ended_by_calendar"], each["facts_changed"], each["may_be_shown"]) == (60, 0, 60)
        assert len(each["some"]) == 50


class TestNeverReviewed:
    """A mentor whom no night can review."""

    def test_a_rule_of_the_database_refuses_the_pause(
        self, here: Play, connection: Connection, facts: Facts, tmp_path: Path
    ) -> None:
        """run, alerts, status, metrics and digest name the mentor every night, until a night succeeds."""
        organisation = facts.organisation("hlf")
        coordinator(connection, organisation)
        mentor = facts.certified_mentor(organisation, today() - timedelta(days=3), full_name="Ola Hansen")
        facts.certified_mentor(organisation, today() + YEARS)
        connection.execute(
            "ALTER TABLE mentor_pauses ADD CONSTRAINT nobody_is_paused CHECK (actor <> 'certjob') NOT VALID"
        )

        night = here("run")

        assert night.returncode == 3
        assert str(mentor) in night.stderr
        alerts, status = here("alerts"), here("status", "-q")
        assert (alerts.returncode, status.returncode) == (3, 3)
        assert alerts.stdout.startswith("Not reviewed: Ola Hansen (M1001 of hlf), since ")
        assert status.stderr == "certjob status: 1 mentor could not be reviewed; see `certjob alerts`\n"
        (each,) = json.loads(here("alerts", "--json").stdout)["never_reviewed"]
        assert (each["mentor_id"], each["member_no"]) == (str(mentor), "M1001")
        assert metric(tmp_path, 'certjob_alerts{kind="never_reviewed"}') == 1
        (page,) = digests(tmp_path)
        assert "* Ola Hansen (M1001), siden " in page
        assert (again := here("run")).returncode == 3
        assert again.stderr == ""

        connection.execute("ALTER TABLE mentor_pauses DROP CONSTRAINT nobody_is_paused")
        assert here("resync", "M1001").returncode == 0
        assert here("alerts").returncode == here("status", "-q").returncode == here("run").returncode == 0
        assert connection.execute("SELECT count(*) FROM review_problems").fetchall() == [(0,)]


class TestWaitingMail:
    """A mail server that is dead for days."""

    def test_what_has_waited_for_a_day_is_an_alert(
        self, here: Play, connection: Connection, facts: Facts, tmp_path: Path
    ) -> None:
        """How much, since when, and why the stage stopped; on the first day it is only the run's business."""
        organisation = facts.organisation("hlf")
        coordinator(connection, organisation)
        for _ in range(4):
            facts.certified_mentor(organisation, today() + timedelta(days=30))
        dead = {"CERTJOB_NOTIFY_URL": "smtp://127.0.0.1:1"}
        assert here("run", **dead).returncode == 3
        assert here("alerts").returncode == here("status", "-q").returncode == 0

        connection.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '25 hours'")
        connection.execute("UPDATE coordinator_digests SET queued_at = queued_at - interval '25 hours'")

        night = here("run", **dead)
        assert night.returncode == 3
        alerts, status = here("alerts"), here("status", "-q")
        assert (alerts.returncode, status.returncode) == (3, 3)
        assert alerts.stdout.startswith("Mail waits: 4 reminders, the oldest, since ")
        assert "\nMail waits: 1 digest, the oldest, since " in alerts.stdout
        assert "the mail server cannot be used: Connection refused" in alerts.stdout
        assert status.stderr == (
            "certjob status: 4 reminders have waited for more than a day, 1 digest has waited for more than a day; "
            "see `certjob alerts`\n"
        )
        document = json.loads(here("alerts", "--json").stdout)
        assert [(row["what"], row["number"]) for row in document["waiting_mail"]] == [("reminders", 4), ("digests", 1)]
        assert metric(tmp_path, 'certjob_waiting_mail{what="reminders"}') == 4
        assert metric(tmp_path, 'certjob_waiting_mail{what="digests"}') == 1

        assert here("run").returncode == 0
        assert here("alerts").returncode == here("status", "-q").returncode == 0
        assert metric(tmp_path, 'certjob_waiting_mail{what="reminders"}') == 0
