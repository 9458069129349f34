"""CERTJOB_MAIL_HOURS: outside them reminders and digests wait, and nothing else does."""

import dataclasses
import json
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from certjob.outbox.open_work import MAIL_KINDS
from tests.conftest import Certjob
from tests.mail.conftest import DOWN, Scene
from tests.support.command_line import today
from tests.support.facts import TODAY
from tests.support.nights import FlakyPortal, delivery
from tests.support.smtp_server import Mailbox, real_server

OSLO = ZoneInfo("Europe/Oslo")
MORNING = datetime(2026, 3, 10, 8, tzinfo=OSLO)


@pytest.mark.parametrize(
    ("close_after", "fails", "sent", "waiting"),
    [
        (0, (), [], (3, 1)),
        (2, (), ["reminder", "reminder"], (1, 1)),
        (4, (), ["reminder", "reminder", "reminder", "digest"], (0, 0)),
        (1, DOWN, [], (3, 1)),
    ],
    ids=["outside", "they end in the middle", "they end after the last message", "the server is down in them"],
)
def test_outside_them_mail_waits_and_the_portal_does_not(
    desk: Scene, close_after: int, fails: Any, sent: list[str], waiting: tuple[int, int]
) -> None:
    """No claim, no message, no complaint where nothing was tried; the hours excuse nothing that was."""
    desk.execute("UPDATE organisations SET reminder_thresholds = '{30}'")
    for number in (5, 5, 5, -40):
        desk.certified(until=number)
    portal, channel = FlakyPortal(), desk.channel
    ways_out = dataclasses.replace(
        delivery(channel=channel, portal=portal),
        mail_waits_until=lambda: MORNING if len(channel.sent) >= close_after else None,
    )

    assert [message.kind for message in desk.night(ways_out=ways_out, fails=fails)] == sent

    report = desk.report
    assert [visible for _, visible, _ in portal.calls] == [False]
    assert tuple(report.open_work[kind].pending for kind in MAIL_KINDS) == waiting
    untouched = "status = 'pending' AND attempts = 0 AND claim_token IS NULL"
    assert desk.rows(f"SELECT count(*) FROM cert_notification_log WHERE {untouched}") == [(waiting[0],)]
    waits = MORNING.isoformat() if any(waiting) and not fails else None
    assert report.to_document()["mail_waits_until"] == waits
    assert [stop.code for stop in report.stopped] == (["channel_down"] if fails else [])
    assert report.outcome.value == ("attention" if fails else "ok")


def hours(begin: int, end: int) -> str:
    """Hours that begin and end so many hours from now, by the clocks of Oslo."""
    now = datetime.now(OSLO)
    return f"{now + timedelta(hours=begin):%H:%M}-{now + timedelta(hours=end):%H:%M}"


def test_the_night_queues_whoever_looks_is_told_and_the_morning_sends(certjob: Certjob, scene: Scene) -> None:
    """Exit 0 and silence at night. `check` warns where only the night delivers: mail would wait for ever."""
    scene.certified(until=(today() - TODAY).days + 5, email="kari@example.org")
    mailbox, closed = Mailbox(), hours(2, 3)
    with real_server(mailbox) as server:
        mail = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}", "CERTJOB_MAIL_FROM": "post@example.org"}
        at_night = mail | {"CERTJOB_MAIL_HOURS": closed}

        def verdict() -> str:
            checks = json.loads(certjob("check", "--json", **at_night).stdout)["checks"]
            return next(str(check["verdict"]) for check in checks if check["check"] == "mail hours")

        assert json.loads(certjob("status", "--json", **at_night).stdout)["mail_waits_until"] is None
        run = certjob("run", **at_night)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
        document = json.loads(certjob("deliver", "--json", **at_night).stdout)
        waits_until = datetime.fromisoformat(document["mail_waits_until"])
        assert timedelta(hours=1) < waits_until - datetime.now(OSLO) <= timedelta(hours=2)
        assert document["reminders"] == {"sent": 0, "failed": 0, "cancelled": 0, "lost": 0, "pending": 1}
        assert "mail waits until 20" in certjob("run", "-v", **at_night).stderr
        assert f" {closed.partition('-')[0]} (CERTJOB_MAIL_HOURS)" in certjob("status", **at_night).stdout
        scene.execute("UPDATE job_runs SET started_at = started_at - interval '34 hours'")
        scene.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '30 hours'")
        assert (verdict(), mailbox.envelopes) == ("warn", [])
        at_night["CERTJOB_MAIL_HOURS"] = hours(-1, 2)
        late = certjob("deliver", "--json", **at_night)
        assert verdict() == "ok", "a run has delivered in them"

    assert json.loads(late.stdout)["mail_waits_until"] is None
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["kari@example.org"]]
    empty = certjob("run", CERTJOB_MAIL_HOURS="20:00-20:00")
    assert empty.returncode == 2
    assert "CERTJOB_MAIL_HOURS: " in empty.stderr
    assert "empty window" in empty.stderr
