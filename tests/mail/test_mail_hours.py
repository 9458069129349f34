"""CERTJOB_MAIL_HOURS: outside them only mail waits."""

import json
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from certjob.outbox.open_work import MAIL_KINDS
from tests.conftest import Certjob
from tests.mail.conftest import Nights
from tests.support.command_line import today
from tests.support.facts import TODAY
from tests.support.nights import FlakyPortal, delivery
from tests.support.smtp_server import Mailbox, real_server

OSLO = ZoneInfo("Europe/Oslo")
MORNING = datetime(2026, 3, 10, 8, tzinfo=OSLO)


@pytest.mark.parametrize(
    ("close_after", "sent", "waiting"),
    [
        (0, [], (3, 1)),
        (2, ["reminder", "reminder"], (1, 1)),
        (4, ["reminder", "reminder", "reminder", "digest"], (0, 0)),
    ],
    ids=["closed", "close after two", "close after the last"],
)
def test_outside_mail_hours_only_mail_waits(
    desk: Nights, close_after: int, sent: list[str], waiting: tuple[int, int]
) -> None:
    """Waiting mail is not claimed and not reported as a problem."""
    desk.execute("UPDATE organisations SET reminder_thresholds = '{30}'")
    for number in (5, 5, 5, -40):
        desk.certified(until=number)
    portal, channel = FlakyPortal(), desk.channel
    ways_out = delivery(
        channel=channel,
        portal=portal,
        mail_waits_until=lambda: MORNING if len(channel.sent) >= close_after else None,
    )

    assert [message.kind for message in desk.night(ways_out=ways_out)] == sent

    report = desk.report
    assert [visible for _, visible, _ in portal.calls] == [False]
    assert tuple(report.open_work[kind].pending for kind in MAIL_KINDS) == waiting
    untouched = "status = 'pending' AND attempts = 0 AND claim_token IS NULL"
    assert desk.rows(f"SELECT count(*) FROM cert_notification_log WHERE {untouched}") == [(waiting[0],)]
    assert report.to_document()["mail_waits_until"] == (MORNING.isoformat() if any(waiting) else None)
    assert (report.stopped, report.outcome.value) == ([], "ok")


def hours(begin: int, end: int) -> str:
    """Return hours that begin and end so many hours from now in Oslo."""
    now = datetime.now(OSLO)
    return f"{now + timedelta(hours=begin):%H:%M}-{now + timedelta(hours=end):%H:%M}"


def test_mail_of_the_night_goes_out_in_the_morning(here: Certjob, nights: Nights) -> None:
    """The night exits with 0 and prints nothing. `check` warns if mail has waited for more than a day."""
    nights.certified(until=(today() - TODAY).days + 5, email="kari@example.org")
    mailbox, closed = Mailbox(), hours(2, 3)
    with real_server(mailbox) as server:
        mail = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}", "CERTJOB_MAIL_FROM": "post@example.org"}
        at_night, by_day = mail | {"CERTJOB_MAIL_HOURS": closed}, mail | {"CERTJOB_MAIL_HOURS": hours(-1, 2)}

        def verdict(settings: dict[str, str]) -> str:
            checks = json.loads(here("check", "--json", **settings).stdout)["checks"]
            return next(str(check["verdict"]) for check in checks if check["check"] == "mail hours")

        run = here("run", **at_night)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
        waits_until = json.loads(here("deliver", "--json", **at_night).stdout)["mail_waits_until"]
        assert timedelta(hours=1) < datetime.fromisoformat(waits_until) - datetime.now(OSLO) <= timedelta(hours=2)
        assert f" {closed.partition('-')[0]} (CERTJOB_MAIL_HOURS)" in here("status", **at_night).stdout
        nights.execute("UPDATE job_runs SET started_at = started_at - interval '34 hours'")
        nights.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '30 hours'")
        assert (verdict(at_night), mailbox.envelopes) == ("warn", [])
        late = here("deliver", "--json", **by_day)
        assert verdict(by_day) == "ok"

    assert json.loads(late.stdout)["mail_waits_until"] is None
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["kari@example.org"]]
