"""CERTJOB_MAIL_HOURS: outside them reminders and digests wait, and nothing else does."""

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from certjob.database import Connection
from certjob.errors import ChannelDownError
from certjob.mail.message import OutgoingMessage
from certjob.night.deliveries import Delivery
from certjob.night.report import RunReport
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, delivery, night
from tests.support.smtp_server import Mailbox, real_server

OSLO = ZoneInfo("Europe/Oslo")
MORNING = datetime(2026, 3, 10, 8, tzinfo=OSLO)
UNTOUCHED = "SELECT count(*) FROM cert_notification_log WHERE status = 'pending' AND attempts = 0"


def hours(begin: timedelta, end: timedelta) -> str:
    """Hours that lie so around this moment, by the clocks of Oslo."""
    now = datetime.now(OSLO)
    return f"{now + begin:%H:%M}-{now + end:%H:%M}"


def closed() -> str:
    return hours(timedelta(hours=2), timedelta(hours=3))


def opened() -> str:
    return hours(-timedelta(hours=1), timedelta(hours=2))


def waiting_for_morning(channel: CollectingChannel, *, after: int = 0, **options: Any) -> Delivery:
    """Ways out whose mail hours are over once so many messages were sent."""
    return dataclasses.replace(
        delivery(channel=channel, **options),
        mail_waits_until=lambda: MORNING if len(channel.sent) >= after else None,
    )


@pytest.fixture
def programme(connection: Connection, facts: Facts) -> None:
    """Three mentors to be reminded, one to be hidden, a coordinator."""
    organisation = facts.organisation("hlf")
    connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'berit@example.org')", (organisation,)
    )
    for _ in range(3):
        facts.certified_mentor(organisation, TODAY + timedelta(days=5))
    facts.certified_mentor(organisation, TODAY - timedelta(days=40))


def said(report: RunReport) -> tuple[object, object]:
    return report.to_document()["mail_waits_until"], report.outcome.value


@pytest.mark.usefixtures("programme")
def test_outside_them_mail_waits_and_the_portal_does_not(connection: Connection, facts: Facts) -> None:
    """No claim, no message, no complaint: the digest is queued, the hide is out, the run is ok."""
    portal, channel = FlakyPortal(), CollectingChannel()

    report = night(connection, ways_out=waiting_for_morning(channel, portal=portal))

    assert said(report) == (MORNING.isoformat(), "ok")
    assert [visible for _, visible, _ in portal.calls] == [False]
    assert (channel.sent, report.stopped) == ([], [])
    assert (report.reminders_pending, report.digests_pending) == (3, 1)
    assert facts.rows(UNTOUCHED) == [(3,)]


@pytest.mark.usefixtures("programme")
def test_hours_that_end_in_the_middle_of_the_stage_end_it(connection: Connection, facts: Facts) -> None:
    """After the message in hand; the rest is as it was."""
    channel = CollectingChannel()

    report = night(connection, ways_out=waiting_for_morning(channel, after=2, portal=FlakyPortal()))

    assert said(report) == (MORNING.isoformat(), "ok")
    assert [message.kind for message in channel.sent] == ["reminder", "reminder"]
    assert facts.rows(UNTOUCHED) == [(1,)]


@pytest.mark.usefixtures("programme")
def test_hours_that_end_after_the_last_message_are_nobodys_concern(connection: Connection) -> None:
    """Nothing waits for them."""
    channel = CollectingChannel()

    report = night(connection, ways_out=waiting_for_morning(channel, after=4, portal=FlakyPortal()))

    assert len(channel.sent) == 4
    assert said(report) == (None, "ok")


@pytest.mark.usefixtures("programme")
def test_a_server_that_is_down_in_them_is_still_said(connection: Connection) -> None:
    """The hours excuse nothing that was tried."""

    def refuse(_message: OutgoingMessage) -> None:
        text = "gone"
        raise ChannelDownError(text)

    report = night(
        connection, ways_out=waiting_for_morning(CollectingChannel(on_send=refuse), after=1, portal=FlakyPortal())
    )

    assert said(report) == (None, "attention")
    assert [stop.code for stop in report.stopped] == ["down"]


class TestCommand:
    """The installed command, and a mail server."""

    @pytest.fixture
    def due(self, facts: Facts) -> None:
        organisation = facts.organisation("nhf", portal=None)
        facts.certified_mentor(organisation, today() + timedelta(days=5), email="kari@example.org")

    @pytest.mark.usefixtures("due")
    def test_the_night_queues_and_the_morning_sends(self, certjob: Certjob) -> None:
        """Exit 0 and silence at night; `deliver` sends once the hours have begun."""
        mailbox = Mailbox()
        with real_server(mailbox) as server:
            mail = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}", "CERTJOB_MAIL_FROM": "post@example.org"}
            night = certjob("run", **mail, CERTJOB_MAIL_HOURS=closed())
            early = certjob("deliver", "--json", **mail, CERTJOB_MAIL_HOURS=closed())
            assert mailbox.envelopes == []
            late = certjob("deliver", "--json", **mail, CERTJOB_MAIL_HOURS=opened())

        assert (night.returncode, night.stdout, night.stderr) == (0, "", "")
        waits_until = datetime.fromisoformat(json.loads(early.stdout)["mail_waits_until"])
        assert timedelta(hours=1) < waits_until - datetime.now(OSLO) <= timedelta(hours=2)
        assert json.loads(early.stdout)["reminders"] == {
            "sent": 0, "failed": 0, "cancelled": 0, "lost": 0, "pending": 1,
        }  # fmt: skip
        assert json.loads(late.stdout)["mail_waits_until"] is None
        assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["kari@example.org"]]

    @pytest.mark.usefixtures("due")
    def test_whoever_looks_is_told(self, certjob: Certjob) -> None:
        """`status` and -v say until when; without mail that waits there is nothing to say."""
        wanted = closed()
        settings = {"CERTJOB_NOTIFY_URL": "maildir:/nowhere/mail", "CERTJOB_MAIL_HOURS": wanted}
        before = certjob("status", "--json", **settings)
        night = certjob("run", "-v", **settings)
        status = certjob("status", **settings)
        document = certjob("status", "--json", **settings)

        assert json.loads(before.stdout)["mail_waits_until"] is None
        assert night.returncode == 0, night
        assert "mail waits until 20" in night.stderr
        assert f" {wanted.partition('-')[0]} (CERTJOB_MAIL_HOURS)" in status.stdout
        assert json.loads(document.stdout)["mail_waits_until"] is not None

    @pytest.mark.parametrize(
        ("delivers_in_them", "waits", "warned"), [(False, True, True), (True, True, False), (False, False, False)]
    )
    @pytest.mark.usefixtures("due")
    def test_check_warns_where_only_the_night_delivers(
        self, certjob: Certjob, facts: Facts, delivers_in_them: bool, waits: bool, warned: bool
    ) -> None:
        """A crontab with `run` alone, ten hours from here: mail would wait for ever."""
        settings = {"CERTJOB_NOTIFY_URL": "maildir:/nowhere/mail", "CERTJOB_MAIL_HOURS": opened()}
        certjob("run", "--no-deliver")
        facts.connection.execute(
            "UPDATE job_runs SET started_at = started_at - make_interval(hours => %s)",
            (24 if delivers_in_them else 34,),
        )
        if waits:
            facts.connection.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '30 hours'")

        found = certjob("check", "--json", **settings)

        verdicts = {check["check"]: check["verdict"] for check in json.loads(found.stdout)["checks"]}
        assert verdicts["mail hours"] == ("warn" if warned else "ok")

    def test_hours_that_are_none_are_said(self, certjob: Certjob) -> None:
        """By the variable, with an example."""
        result = certjob("run", CERTJOB_MAIL_HOURS="20:00-20:00")

        assert result.returncode == 2
        assert "CERTJOB_MAIL_HOURS: " in result.stderr
        assert "empty window" in result.stderr
