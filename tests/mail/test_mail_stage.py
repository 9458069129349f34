"""The mail stage: each message is settled before the next is sent, and a failure concerns one message or all."""

import email
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ChannelDownError, MailRejectedError, StoppedBySignalError
from certjob.jobs import runs
from certjob.mail import steps
from certjob.mail.message import OutgoingMessage
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.stage import MailCounts
from certjob.outbox.retry import seconds_to_next_round
from certjob.reports.alerts import read_alerts
from certjob.stopping import StopFlag
from tests.mail.channels import reminder_mail, smtp_channel
from tests.mail.conftest import CUT, DEFERRED, DOWN, REFUSED, REJECTED, UNCLEAR, Mailing, day
from tests.support.facts import Facts
from tests.support.nights import delivery, expire_leases, new_job
from tests.support.smtp_server import ScriptedServer, ServerFault


def queue(mailing: Mailing, count: int) -> None:
    """Queue a reminder each for m0@example.org, m1@example.org, … in the order of delivery."""
    for number in range(count):
        mentor = {"id": UUID(int=number + 1), "full_name": "Kari Nordmann", "email": f"m{number}@example.org"}
        mailing.facts.insert("mentors", organisation_id=mailing.home, member_no=f"M{number}", **mentor)
        mailing.facts.certificate(UUID(int=number + 1), day(5))
    mailing.review()


def test_alert_about_waiting_mail_has_the_newest_reason(mailing: Mailing) -> None:
    queue(mailing, 1)
    for reason in ("first reason", "second reason"):
        mailing.mails(on_send=lambda _message, reason=reason: ChannelDownError(reason))  # type: ignore[misc]
    mailing.execute("UPDATE cert_notification_log SET queued_at = now() - interval '2 days'")

    (alert,) = read_alerts(mailing.connection, today=day(0))

    assert "second reason" in (alert.error or "")


def statuses(mailing: Mailing) -> dict[object, object]:
    """Count the reminders by status. ``untouched``: pending as before the first claim."""
    rows = mailing.rows(
        "SELECT CASE WHEN status = 'pending' AND attempts = 0 AND claim_token IS NULL AND NOT maybe_sent"
        " AND next_attempt_at <= now() THEN 'untouched' ELSE status END, count(*) FROM cert_notification_log GROUP BY 1"
    )
    return {status: count for status, count in rows}  # noqa: C416 - dict() wants pairs


def log(mailing: Mailing, columns: str) -> list[tuple[object, ...]]:
    return mailing.rows(f"SELECT {columns} FROM cert_notification_log ORDER BY id")


def test_each_message_is_settled_before_the_next_is_sent(mailing: Mailing, other: Connection) -> None:
    """So at most one mail can come twice after a crash."""
    queue(mailing, 3)

    def look(_message: OutgoingMessage) -> None:
        sent = other.execute("SELECT FROM cert_notification_log WHERE status = 'sent'").fetchall()
        assert len(sent) == len(mailing.channel.sent)

    assert mailing.stage(on_send=look) is None

    assert log(mailing, "status, sent_at IS NOT NULL") == [("sent", True)] * 3
    assert [message.to for message in mailing.sent] == [f"m{number}@example.org" for number in range(3)]


def test_repeat_after_an_unknown_outcome_says_so(mailing: Mailing) -> None:
    """The connection broke after the message. The repeat has the same Message-ID."""
    queue(mailing, 2)
    with ScriptedServer({"END": ServerFault.CUT}) as server:
        assert mailing.stage(channel=smtp_channel(server.port)) is None

    assert log(mailing, "status, maybe_sent") == [("pending", True)] * 2
    mailing.make_due()
    mailing.stage()
    for message, first in zip(mailing.sent, server.bodies, strict=True):
        assert f"-{message.idempotency_key}@".encode() in first
        assert message.repeat
        assert "Du har kanskje fått denne påminnelsen før." in message.text


@pytest.mark.parametrize(
    ("outcome", "url_is_valid", "becomes"),
    [(None, True, "sent"), (None, False, "pending"), (REJECTED, True, "failed")],
    ids=["sent", "sent, URL wrong now", "rejected"],
)
def test_outcome_is_stored_although_the_session_ended(
    mailing: Mailing, database_url: str, other: Connection, outcome: Exception | None, url_is_valid: bool, becomes: str
) -> None:
    """The stage ends with the error of the database. The next message is untouched."""
    queue(mailing, 2)

    def end_the_session(_message: OutgoingMessage) -> Exception | None:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [lost.info.backend_pid])
        lost.url = database_url if url_is_valid else "postgresql://user@example.org:none/"
        return outcome

    with database.connect(database_url) as lost, pytest.raises(psycopg.OperationalError):
        mailing.stage(mails=reminder_mail(lost), on_send=end_the_session)

    assert log(mailing, "status, attempts, claim_token IS NULL") == [(becomes, 1, url_is_valid), ("pending", 0, True)]


def test_mail_that_was_not_sent_is_released_although_the_session_ended(
    mailing: Mailing, database_url: str, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session ends while the facts are read. The mail is due at once, and no repeat."""
    queue(mailing, 1)

    def read(_item: object) -> None:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [lost.info.backend_pid])
        lost.execute("SELECT 1")

    with database.connect(database_url) as lost:
        mails = reminder_mail(lost)
        monkeypatch.setattr(mails, "draft", read)
        with pytest.raises(psycopg.OperationalError):
            mailing.stage(mails=mails)

    assert log(mailing, "status, attempts, claim_token, next_attempt_at <= now()") == [("pending", 0, None, True)]


OUTCOMES = {
    "three unknown outcomes": {
        "outcomes": [CUT, CUT, DEFERRED, CUT, CUT, None, CUT, CUT, CUT],
        "stopped": "outcomes_unknown: the outcome of 3 messages in a row",
        "became": {"untouched": 2, "sent": 1, "pending": 8},
    },
    "twenty rejections": {
        "outcomes": [REFUSED] * 19 + [None] + [UNCLEAR, DEFERRED, REJECTED] * 10 + [REFUSED] * 10,
        "stopped": "all_refused: 20 messages were rejected and none was accepted (last: 550 5.7.1 not you)",
        "became": {"untouched": 2, "sent": 1, "pending": 49, "failed": 10},
    },
    "third attempt fails": {
        "outcomes": [DOWN, DOWN, None, None, DOWN, DOWN, DOWN],
        "stopped": "channel_down: gone; the rest stays pending",
        "became": {"untouched": 3, "sent": 2},
    },
}


@pytest.mark.parametrize("case", OUTCOMES.values(), ids=OUTCOMES)
def test_many_failures_end_the_stage(mailing: Mailing, case: dict[str, Any]) -> None:
    """Messages that were certainly not sent stay untouched."""
    stopped, became = case.get("stopped", "None"), case["became"]
    queue(mailing, sum(became.values()))

    assert str(mailing.stage(*case["outcomes"])).startswith(stopped)

    assert statuses(mailing) == became
    assert mailing.counts == MailCounts(sent=became.get("sent", 0), failed=became.get("failed", 0))


def test_each_outcome_is_stored(mailing: Mailing) -> None:
    """The delay doubles with each attempt. No server is asked about an invalid address."""
    queue(mailing, 5)
    mailing.execute("UPDATE mentors SET email = 'nowhere' WHERE email = 'm0@example.org'")
    mailing.execute("UPDATE cert_notification_log SET attempts = 1 WHERE mentor_id = %s", UUID(int=4))  # comes last

    mailing.stage(None, REJECTED, CUT, DEFERRED)

    row = "status, attempts, maybe_sent, last_error, failure_code, claim_token"
    delay = "ceil(extract(epoch FROM next_attempt_at - now()) / 60) = 15 * attempts"
    assert log(mailing, f"{row}, {delay}")[1:] == [
        ("sent", 1, False, None, None, None, False),
        ("failed", 1, False, "550 no such user", "wrong_address", None, False),
        ("pending", 2, False, "450 greylisted", "mail_delayed", None, True),
        ("pending", 1, True, "cut", "mail_delayed", None, True),
    ]
    assert log(mailing, "status, attempts, failure_code")[0] == ("failed", 0, "wrong_address")
    assert [seconds_to_next_round(attempts) / 60 for attempts in (1, 2, 3, 5, 6, 99)] == [15, 30, 60, 240, 360, 360]


def test_first_success_makes_rejected_mails_due(mailing: Mailing) -> None:
    """Here a digest. Without a success, a rejected mail waits for at most 45 minutes."""
    queue(mailing, 3)
    waits = "status, attempts, ceil(extract(epoch FROM next_attempt_at - now()) / 60)"
    for attempts, minutes in ((1, 15), (2, 30), (3, 45), (4, 45)):
        mailing.stage(*[REFUSED] * 3)
        assert log(mailing, waits) == [("pending", attempts, minutes)] * 3
        mailing.make_due()
    mailing.stage(*[REFUSED] * 3)
    mailing.coordinator()

    sent = [[message.kind for message in mailing.mails()] for _ in range(2)]

    assert sent == [["digest"], ["reminder"] * 3]


@pytest.mark.parametrize("other", ["reminder", "digest"])
def test_unclear_rejection_is_a_wrong_address_after_another_mail_was_accepted(mailing: Mailing, other: str) -> None:
    """A server without enhanced codes may reject everyone. An acceptance before the rejection says nothing."""
    queue(mailing, 3 if other == "reminder" else 2)
    if other == "digest":
        mailing.coordinator()

    def reject_two(message: OutgoingMessage) -> Exception | None:
        return UNCLEAR if message.to in ("m0@example.org", "m1@example.org") else None

    mailing.stage(on_send=lambda message: UNCLEAR)
    mailing.make_due()
    mailing.stage(on_send=lambda message: UNCLEAR)
    assert log(mailing, "status, failure_code")[:2] == [("pending", "mail_stopped")] * 2
    mailing.make_due()

    for _ in range(2):
        mailing.mails(on_send=reject_two)

    assert log(mailing, "status, failure_code, last_error")[:2] == [("failed", "wrong_address", "550 no")] * 2
    assert [alert.kind for alert in read_alerts(mailing.connection, today=day(0))] == ["failed_reminders"] * 2


def test_mail_that_is_rejected_for_a_day_is_an_alert_with_the_servers_words(mailing: Mailing) -> None:
    """Exchange rejects unknown recipients like this. Others are delivered, so the stage does not stop."""
    queue(mailing, 2)
    unknown = MailRejectedError("550 5.4.1 Recipient address rejected: Access denied", may_be_address=False)
    mailing.mails(on_send=lambda message: unknown if message.to == "m0@example.org" else None)
    assert (mailing.report.stopped, read_alerts(mailing.connection, today=day(0))) == ([], [])
    for column in ("queued_at", "deferred_since", "sent_at"):
        mailing.execute(f"UPDATE cert_notification_log SET {column} = {column} - interval '25 hours'")

    (alert,) = read_alerts(mailing.connection, today=day(0))

    assert (alert.kind, alert.cause, alert.error) == ("failed_reminders", "mail_stopped", str(unknown))


def test_stage_ends_at_its_deadline(mailing: Mailing) -> None:
    """The rest stays untouched."""
    queue(mailing, 2)
    assert mailing.stage(seconds=0) == "deadline: the time for deliveries is over; the rest stays pending"
    assert statuses(mailing) == {"untouched": 2}


@pytest.mark.parametrize("error", [None, DOWN], ids=["sent", "down"])
def test_signal_ends_the_stage_after_the_current_message(mailing: Mailing, error: Exception | None) -> None:
    """A sent message is settled, and the others stay untouched. The error is not one of the mail server."""
    queue(mailing, 3)
    stop = StopFlag()

    def set_and_fail(_message: OutgoingMessage) -> Exception | None:
        assert not stop.is_set()
        stop.set()
        return error

    with pytest.raises(StoppedBySignalError):
        mailing.stage(on_send=set_and_fail, stop=stop)

    assert statuses(mailing) == ({"untouched": 3} if error else {"untouched": 2, "sent": 1})


def test_no_attempt_starts_that_could_outlast_the_lease(mailing: Mailing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a first attempt, nor a second one after a slow first. The claim is released."""
    queue(mailing, 2)
    tries = []

    def time_out(message: OutgoingMessage) -> None:
        tries.append(message)
        monkeypatch.setattr(mailing.channel, "worst_case_seconds", 1000.0)
        raise DOWN

    for lease_seconds in (0.5, 900.0):
        monkeypatch.setattr(ReminderMail, "lease_seconds", lease_seconds)
        stopped = str(mailing.stage(on_send=time_out))
        assert stopped.startswith("channel_down: a message can take longer than its lease")
        assert statuses(mailing) == {"untouched": 2}
    assert len(tries) == 1


@pytest.mark.parametrize("outcome", [None, REJECTED, CUT], ids=["sent", "rejected", "unknown"])
def test_outcome_of_a_lost_lease_changes_nothing(
    mailing: Mailing, other: Connection, outcome: Exception | None
) -> None:
    """Another process has claimed the reminder during the call. The report counts it."""
    queue(mailing, 1)

    def take_over(_message: OutgoingMessage) -> Exception | None:
        expire_leases(Facts(other), "cert_notification_log")
        steps.claim(reminder_mail(other))
        return outcome

    mailing.stage(on_send=take_over)

    assert mailing.counts == MailCounts(lost=1)
    assert log(mailing, "status, attempts, claim_token IS NOT NULL, maybe_sent") == [("pending", 2, True, True)]


def test_server_that_rejects_everything_for_three_days(mailing: Mailing) -> None:
    """No address is called wrong. Within an hour of the repair, each mail arrives once, except those of past days."""
    mailing.coordinator()
    rejects = {"RCPT": b"550 5.7.1 Service unavailable, this account is suspended"}
    tried = list[int]()
    with ScriptedServer(rejects) as server:

        def deliver_hourly(number: int, *, hours: int) -> None:
            channel = smtp_channel(server.port)
            for _ in range(hours):
                for table in ("cert_notification_log", "coordinator_digests"):
                    mailing.execute(f"UPDATE {table} SET next_attempt_at = next_attempt_at - interval '1 hour'")
                server.commands.clear()
                job = new_job(mailing.connection, day(number), ways_out=delivery(channel=channel))
                runs.deliver(job, accept_date=day(number))
                tried.append(sum(command.startswith("RCPT") for command in server.commands))

        mailing.certified("Pia", until=0, email="pia@example.org")
        for number in range(3):
            for _ in range(3):
                mailing.certified(until=number + 7)
            mailing.mails(number, channel=smtp_channel(server.port))
            deliver_hourly(number, hours=3)
        statuses_then = {status for (status,) in log(mailing, "status")}
        server.answers = {}
        deliver_hourly(2, hours=1)

    assert tried == [3 + 2] * 3 + [6 + 2] * 3 + [9 + 2] * 4
    assert statuses_then == {"pending", "superseded"}
    arrived = [email.message_from_bytes(body)["Message-ID"] for body in server.bodies]
    assert len(arrived) == len(set(arrived)) == 3 * 3 + 1 + 1
    assert read_alerts(mailing.connection, today=day(2)) == []
