"""CERTJOB_MAIL_HOURS: outside them reminders and digests wait, and nothing else does."""

import dataclasses
import json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from certjob.database import Connection
from certjob.errors import ChannelDownError
from certjob.mail.message import OutgoingMessage
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, delivery, night
from tests.support.smtp_server import Mailbox, real_server

OSLO = ZoneInfo("Europe/Oslo")
MORNING = datetime(2026, 3, 10, 8, tzinfo=OSLO)


def hours(begin: int, end: int) -> str:
    """Hours that begin and end so many hours from now, by the clocks of Oslo."""
    now = datetime.now(OSLO)
    return f"{now + timedelta(hours=begin):%H:%M}-{now + timedelta(hours=end):%H:%M}"


@pytest.mark.parametrize(
    ("close_after", "fails", "sent", "waiting"),
    [
        (0, False, [], (3, 1)),
        (2, False, ["reminder", "reminder"], (1, 1)),
        (4, False, ["reminder", "reminder", "reminder", "digest"], (0, 0)),
        (1, True, [], (3, 1)),
    ],
    ids=["outside", "they end in the middle", "they end after the last message", "the server is down in them"],
)
def test_outside_them_mail_waits_and_the_portal_does_not(
    connection: Connection,
    facts: Facts,
    close_after: int,
    fails: bool,
    sent: list[str],
    waiting: tuple[int, int],
) -> None:
    """No claim, no message, no complaint where nothing was tried; the hours excuse nothing that was."""
    organisation = facts.organisation("hlf")
    connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'berit@example.org')", (organisation,)
    )
    for days in (5, 5, 5, -40):
        facts.certified_mentor(organisation, TODAY + timedelta(days=days))

    def fail(_message: OutgoingMessage) -> None:
        if fails:
            text = "gone"
            raise ChannelDownError(text)

    portal, channel = FlakyPortal(), CollectingChannel(on_send=fail)
    ways_out = dataclasses.replace(
        delivery(channel=channel, portal=portal),
        mail_waits_until=lambda: MORNING if len(channel.sent) >= close_after else None,
    )

    report = night(connection, ways_out=ways_out)

    assert [visible for _, visible, _ in portal.calls] == [False]
    assert [message.kind for message in channel.sent] == sent
    assert (report.reminders_pending, report.digests_pending) == waiting
    assert facts.rows(
        "SELECT count(*) FROM cert_notification_log WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL"
    ) == [(waiting[0],)]
    waits = MORNING.isoformat() if any(waiting) and not fails else None
    assert report.to_document()["mail_waits_until"] == waits
    assert [stop.code for stop in report.stopped] == (["down"] if fails else [])
    assert report.outcome.value == ("attention" if fails else "ok")


@pytest.fixture
def due(facts: Facts) -> None:
    organisation = facts.organisation("nhf", portal=None)
    facts.certified_mentor(organisation, today() + timedelta(days=5), email="kari@example.org")


@pytest.mark.usefixtures("due")
def test_the_night_queues_whoever_looks_is_told_and_the_morning_sends(certjob: Certjob) -> None:
    """Exit 0 and silence at night; `deliver` sends once the hours have begun. Without mail there is nothing to say."""
    mailbox, closed = Mailbox(), hours(2, 3)
    with real_server(mailbox) as server:
        mail = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}", "CERTJOB_MAIL_FROM": "post@example.org"}
        at_night = mail | {"CERTJOB_MAIL_HOURS": closed}
        before = certjob("status", "--json", **at_night)
        run = certjob("run", **at_night)
        early = certjob("deliver", "--json", **at_night)
        told = certjob("run", "-v", **at_night)
        status = certjob("status", **at_night)
        assert mailbox.envelopes == []
        late = certjob("deliver", "--json", **mail, CERTJOB_MAIL_HOURS=hours(-1, 2))

    assert json.loads(before.stdout)["mail_waits_until"] is None
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    document = json.loads(early.stdout)
    waits_until = datetime.fromisoformat(document["mail_waits_until"])
    assert timedelta(hours=1) < waits_until - datetime.now(OSLO) <= timedelta(hours=2)
    assert document["reminders"] == {"sent": 0, "failed": 0, "cancelled": 0, "lost": 0, "pending": 1}
    assert "mail waits until 20" in told.stderr
    assert f" {closed.partition('-')[0]} (CERTJOB_MAIL_HOURS)" in status.stdout
    assert json.loads(late.stdout)["mail_waits_until"] is None
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["kari@example.org"]]


@pytest.mark.usefixtures("due")
def test_check_warns_where_only_the_night_delivers(certjob: Certjob, facts: Facts) -> None:
    """A crontab with `run` alone, ten hours from here: mail would wait for ever."""
    certjob("run", "--no-deliver")
    facts.connection.execute("UPDATE job_runs SET started_at = started_at - interval '34 hours'")

    def verdict() -> str:
        settings = {"CERTJOB_NOTIFY_URL": "maildir:/nowhere/mail", "CERTJOB_MAIL_HOURS": hours(-1, 2)}
        checks = json.loads(certjob("check", "--json", **settings).stdout)["checks"]
        return next(str(check["verdict"]) for check in checks if check["check"] == "mail hours")

    assert verdict() == "ok", "nothing waits yet"
    facts.connection.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '30 hours'")
    assert verdict() == "warn"
    facts.connection.execute("UPDATE job_runs SET started_at = started_at + interval '10 hours'")
    assert verdict() == "ok", "a run has delivered in them"


def test_hours_that_are_none_are_said(certjob: Certjob) -> None:
    result = certjob("run", CERTJOB_MAIL_HOURS="20:00-20:00")

    assert result.returncode == 2
    assert "CERTJOB_MAIL_HOURS: " in result.stderr
    assert "empty window" in result.stderr
