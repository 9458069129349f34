"""Each mentor is reminded once per threshold and last day, and only while it is still true."""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import RecipientDeferredError
from certjob.mail import reminder_mail as reminder_mail_module
from certjob.mail.message import OutgoingMessage
from certjob.mail.reminder_mail import QueuedReminder
from certjob.mail.reminders import CertificationReminderService, find_new_reminders
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import Answer, Settlement
from certjob.reports.alerts import read_alerts
from certjob.review.attention import Kind, read_attention
from tests.mail.conftest import REFUSED, Nights, day
from tests.support.channels import reminder_mail
from tests.support.facts import TODAY
from tests.support.nights import in_background
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

REVOKE = "UPDATE certificates SET revoked_at = now()"
RESTORE = "UPDATE certificates SET revoked_at = NULL"


class Mail(NamedTuple):
    """A reminder that was sent."""

    threshold_days: int
    days_left: int
    """Counted from TODAY, as everywhere in this file."""
    repeat: bool = False


class Row(NamedTuple):
    """A row of the log."""

    threshold_days: int
    days_left: int
    status: str
    earlier: Sequence[tuple[str, int]] = ()
    """The history, newest first: status and days left."""


@pytest.fixture
def kari(nights: Nights) -> UUID:
    """A mentor with 25 days left on the certificate, so the 30-day reminder is due."""
    return nights.certified("Kari", until=25, email="kari@example.org")


def claim(nights: Nights) -> QueuedReminder:
    reminder, _ = reminder_mail(nights.connection).claim()
    assert reminder is not None
    return reminder


def log(nights: Nights, columns: str) -> list[tuple[object, ...]]:
    return nights.rows(f"SELECT {columns} FROM cert_notification_log ORDER BY threshold_days DESC, id")


def rows(nights: Nights) -> list[Row]:
    """Return the log, largest threshold first."""

    def days_left(expires_on: str) -> int:
        return (date.fromisoformat(expires_on) - TODAY).days

    found: list[Any] = log(nights, "threshold_days, expires_on::text, status, history")
    return [
        Row(threshold, days_left(last), status, tuple((h["status"], days_left(h["expires_on"])) for h in earlier[::-1]))
        for threshold, last, status, earlier in found
    ]


Step = Callable[[Nights], object]


def review(number: int) -> Step:
    def step(nights: Nights) -> None:
        nights.execute("UPDATE mentors SET review_on = '-infinity'")
        nights.review(number)

    return step


def night(number: int) -> Step:
    return lambda nights: nights.night(number)


def stage(number: int) -> Step:
    return lambda nights: nights.stage(number=number)


def change(statement: str) -> Step:
    return lambda nights: nights.execute(statement)


def log_has(status: str) -> Step:
    return change(f"UPDATE cert_notification_log SET status = '{status}'")


def move(days_left: int) -> Step:
    """Change the last day in place, as the app does, and review."""

    def step(nights: Nights) -> None:
        nights.execute("UPDATE certificates SET expires_on = %s", day(days_left))
        nights.review()

    return step


def enter(kind: str, days_left: int) -> Step:
    """Enter another certificate for the mentor."""
    return lambda nights: nights.facts.certificate(
        UUID(str(nights.rows("SELECT id FROM mentors")[0][0])), day(days_left), kind=kind
    )


def die_after_the_mail(nights: Nights) -> None:
    """Claim the reminder as a process does that dies before it settles."""
    claim(nights)
    nights.run_out()


@dataclass(frozen=True, kw_only=True)
class History:
    """What happens to the reminders of a mentor, which mails are sent, and the log at the end."""

    steps: Sequence[Step]
    mails: Sequence[Mail] = ()
    log: Sequence[Row]


HISTORIES = {
    "same date is queued once": History(
        steps=[review(0), review(0), log_has("sent"), review(0), log_has("failed"), review(0)],
        log=[Row(30, 25, "failed")],
    ),
    "another kind is queued separately": History(
        steps=[review(0), log_has("failed"), enter("first-aid", 25), review(0)],
        log=[Row(30, 25, "failed"), Row(30, 25, "pending")],
    ),
    "corrected typo keeps the reminder": History(
        steps=[review(0), move(10), move(25), night(0)],
        mails=[Mail(30, 25)],
        log=[Row(30, 25, "sent", (("superseded", 25),)), Row(14, 10, "cancelled")],
    ),
    "date moved back and forth is mailed once per date": History(
        steps=[night(0), *[move(26), move(25), night(0), move(26), night(0)] * 2],
        mails=[Mail(30, 25), Mail(30, 26)],
        log=[Row(30, 26, "sent", (("cancelled", 26), ("sent", 25)))],
    ),
    "mail about a deleted certificate counts for its date": History(
        steps=[
            *[night(0), change("DELETE FROM certificates"), enter("likeperson", 24), night(0)],
            *[move(25), night(0), move(26), night(0)],
        ],
        mails=[Mail(30, 25), Mail(30, 24), Mail(30, 26)],
        log=[Row(30, 25, "sent"), Row(30, 26, "sent", (("sent", 24),))],
    ),
    "re-entered certificate is not mailed about a date twice": History(
        steps=[
            *[night(0), move(24), night(0)],
            *[change("DELETE FROM certificates"), enter("likeperson", 25), night(0)],
        ],
        mails=[Mail(30, 25), Mail(30, 24)],
        log=[Row(30, 24, "sent", (("sent", 25),))],
    ),
    "mail about one kind does not count for another": History(
        steps=[night(0), enter("first-aid", 24), night(0), move(25), night(0)],
        mails=[Mail(30, 25), Mail(30, 24), Mail(30, 25)],
        log=[Row(30, 25, "sent"), Row(30, 25, "sent", (("sent", 24),))],
    ),
    "restored certificate brings back the reminder": History(
        steps=[review(0), change(REVOKE), night(0), change(RESTORE), night(0)],
        mails=[Mail(30, 25)],
        log=[Row(30, 25, "sent", (("cancelled", 25),))],
    ),
    "restored reminder is a repeat if it may have been sent": History(
        steps=[review(0), die_after_the_mail, change(REVOKE), night(0), change(RESTORE), night(0)],
        mails=[Mail(30, 25, repeat=True)],
        log=[Row(30, 25, "sent", (("cancelled", 25),))],
    ),
    "urgent reminder supersedes a pending one of its certificate": History(
        steps=[enter("longer", 50), review(0), review(12)],
        log=[Row(60, 50, "pending"), Row(30, 25, "superseded"), Row(14, 25, "pending")],
    ),
    "urgent reminder supersedes a failed one": History(
        steps=[review(0), log_has("failed"), review(12)],
        log=[Row(30, 25, "superseded"), Row(14, 25, "pending")],
    ),
    "urgent reminder leaves a cancelled one": History(
        steps=[review(0), change(REVOKE), stage(0), change(RESTORE), review(12)],
        log=[Row(30, 25, "cancelled"), Row(14, 25, "pending")],
    ),
    "urgent reminder leaves a sent one": History(
        steps=[night(0), review(12)], mails=[Mail(30, 25)], log=[Row(30, 25, "sent"), Row(14, 25, "pending")]
    ),
    "reminder of a later day that is cancelled today comes on its day": History(
        steps=[review(12), stage(0), night(12)],
        mails=[Mail(14, 25)],
        log=[Row(14, 25, "sent", (("cancelled", 25),))],
    ),
    "reminder about a certificate that begins tomorrow comes tomorrow": History(
        steps=[change(f"UPDATE certificates SET issued_on = '{day(1)}'"), review(1), stage(0), night(1)],
        mails=[Mail(30, 25)],
        log=[Row(30, 25, "sent", (("cancelled", 25),))],
    ),
    "night that passes midnight leaves the new day's reminders": History(
        steps=[
            *[move(15), night(0), review(1), stage(0)],
            *[change("UPDATE cert_notification_log SET attempts = 1 WHERE status = 'pending'"), stage(0)],
        ],
        mails=[Mail(30, 15)],
        log=[Row(30, 15, "sent"), Row(14, 15, "pending")],
    ),
}


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_reminder_is_sent_once_and_only_while_it_is_due(
    nights: Nights, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan, which writes nothing, finds the same new reminders as the queue."""
    queue = CertificationReminderService.queue
    planned: list[list[UUID]] = []
    queued: list[list[UUID]] = []

    def plan_and_queue(self: CertificationReminderService, decisions: Iterable[Decision]) -> list[UUID]:
        decided = list(decisions)
        planned.append(sorted(mentor_id for mentor_id, _ in find_new_reminders(nights.connection, decided)))
        queued.append(sorted(queue(self, decided)))
        return queued[-1]

    monkeypatch.setattr(CertificationReminderService, "queue", plan_and_queue)
    for step in history.steps:
        step(nights)

    sent = [(each.threshold_days, each.expires_on, each.repeat) for each in nights.channel.sent]
    assert sent == [(mail.threshold_days, day(mail.days_left), mail.repeat) for mail in history.mails]
    assert rows(nights) == list(history.log)
    assert planned == queued


@pytest.mark.usefixtures("kari")
def test_urgent_reminder_leaves_a_claimed_one_to_its_claim(nights: Nights) -> None:
    """It supersedes it after the lease, and the late outcome of the claim changes nothing."""
    review(0)(nights)
    claimed = claim(nights)
    review(12)(nights)
    assert rows(nights) == [Row(30, 25, "pending"), Row(14, 25, "pending")]

    nights.run_out()
    review(19)(nights)

    assert reminder_mail(nights.connection).settle(claimed, Settlement(status="sent")) is Answer.LOST
    assert rows(nights) == [Row(30, 25, "superseded"), Row(14, 25, "superseded"), Row(7, 25, "pending")]


@pytest.mark.usefixtures("kari")
def test_lost_claim_changes_nothing(nights: Nights) -> None:
    """Another process has claimed the row, or the date was changed. A claim after that is a repeat."""
    mail, sent = reminder_mail(nights.connection), Settlement(status="sent")
    review(0)(nights)
    first = claim(nights)
    nights.run_out()
    second = claim(nights)
    assert (second.maybe_sent, mail.settle(first, sent)) == (True, Answer.LOST)

    move(26)(nights)
    assert mail.settle(second, sent) is Answer.LOST
    assert rows(nights) == [Row(30, 26, "pending", (("pending", 25),))]

    move(25)(nights)
    third = claim(nights)
    assert (third.maybe_sent, mail.settle(third, sent)) == (True, Answer.SETTLED)
    assert rows(nights) == [Row(30, 25, "sent", (("pending", 26), ("pending", 25)))]


@pytest.mark.usefixtures("kari")
def test_extension_in_place_starts_a_new_reminder(nights: Nights) -> None:
    """The earlier one goes to the history, and the message has another key."""
    (first,) = nights.night()
    nights.execute("UPDATE cert_notification_log SET attempts = 3, last_error = 'deferred', maybe_sent = true")
    move(26)(nights)

    new = "status, attempts, last_error, sent_at, next_attempt_at <= now(), claim_token, maybe_sent"
    assert log(nights, new) == [("pending", 0, None, None, True, None, False)]
    history = "history[0] ->> 'attempts', history[0] ->> 'last_error', history[0] ->> 'maybe_sent'"
    assert log(nights, history) == [("3", "deferred", "true")]
    (second,) = nights.night()
    assert (second.expires_on, second.idempotency_key == first.idempotency_key) == (day(26), False)


def test_reminder_after_a_restore_has_its_own_key(nights: Nights, kari: UUID) -> None:
    """The restored sequence gives another mentor's reminder the same id, and a webhook drops a known key."""
    (lost,) = nights.night()
    nights.execute("DELETE FROM mentors WHERE id = %s", kari)
    nights.execute("ALTER TABLE cert_notification_log ALTER COLUMN id RESTART")
    nights.certified("Ola", until=25)

    (sent,) = nights.night()

    assert lost.idempotency_key.rpartition("-")[0] == sent.idempotency_key.rpartition("-")[0]
    assert lost.idempotency_key != sent.idempotency_key


def test_untried_reminders_are_claimed_first(nights: Nights, other: Connection) -> None:
    """Reminders that a server keeps rejecting do not delay new ones. A row locked by another session is skipped."""
    for name in ("Kari", "Ola", "Pia", "Tor"):
        nights.certified(name, until=5)
    nights.review()
    first, second, third, fourth = (row[0] for row in log(nights, "id"))
    tried = "UPDATE cert_notification_log SET attempts = 2, next_attempt_at = now() - interval '1 day' WHERE id <= %s"
    nights.execute(tried, second)

    with other.transaction():
        other.execute("SELECT FROM cert_notification_log WHERE id = %s FOR UPDATE", (third,))
        assert [claim(nights).id for _ in range(2)] == [fourth, first]

    assert [claim(nights).id for _ in range(2)] == [third, second]


@pytest.mark.usefixtures("kari")
def test_outdated_reminder_is_cancelled(nights: Nights, app: App) -> None:
    """It waits while another session has locked the mentor. Neither counts as an attempt."""
    nights.review()
    nights.execute(REVOKE)
    app.execute("UPDATE mentors SET full_name = 'Kari Hansen'")
    nights.stage()
    assert nights.counts == MailCounts()
    assert log(nights, "status, attempts, claim_token, next_attempt_at > now()") == [("pending", 0, None, True)]
    app.rollback()
    nights.make_due()

    nights.stage()

    assert (nights.counts, nights.sent) == (MailCounts(cancelled=1), [])
    assert log(nights, "status, last_error, attempts, claim_token") == [("cancelled", "revoked", 0, None)]


def test_reminder_uses_the_current_name_and_address(nights: Nights, kari: UUID) -> None:
    """Not those of the review."""
    nights.review()
    nights.execute("UPDATE mentors SET email = ' new@example.org ', full_name = 'Kari Hansen'")
    nights.stage()
    (message,) = nights.sent
    assert (message.to, message.mentor_id, "Kari Hansen" in message.text) == ("new@example.org", kari, True)


@pytest.mark.usefixtures("kari")
def test_mentor_who_was_deleted_after_the_claim_gets_no_mail(nights: Nights) -> None:
    """The trigger that deletes the row may be switched off."""
    nights.review()
    nights.execute("ALTER TABLE mentors DISABLE TRIGGER mentor_deleted")
    reminder = claim(nights)
    nights.execute("DELETE FROM mentors")

    assert reminder_mail(nights.connection).draft(reminder) is None


@pytest.mark.parametrize(
    ("email", "reason", "code"), [("   ", "no address", "no_address"), ("kari@", "is not an address", "wrong_address")]
)
def test_corrected_address_sends_the_reminder(nights: Nights, email: str, reason: str, code: str) -> None:
    """The failure counts once and without an attempt. The mail is not marked as a repeat."""
    nights.certified(until=25, email=email)
    for number in range(2):
        assert nights.night(number) == []
        assert nights.report.to_document()["reminders"]["failed"] == 1 - number
        assert nights.report.reasons == ["1 reminder was not delivered; see `certjob alerts`"]
    ((error, *row),) = log(nights, "last_error, status, failure_code, attempts")
    assert (reason in str(error), row) == (True, ["failed", code, 0])
    nights.execute("UPDATE mentors SET email = 'kari@example.org'")

    assert [(message.to, message.repeat) for message in nights.night(2)] == [("kari@example.org", False)]
    assert log(nights, "status, attempts, last_error") == [("sent", 1, None)]


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize("committed", [True, False], ids=["committed before", "committed after"])
def test_address_corrected_during_a_refusal_is_tried(nights: Nights, app: App, committed: bool) -> None:
    """Also if the refusal is stored before the correction is committed."""
    nights.review()

    def refuse(message: OutgoingMessage) -> None:
        if message.to == "kari@example.org":
            app.execute("UPDATE mentors SET email = 'new@example.org'")
            if committed:
                app.commit()
            raise REFUSED

    nights.stage(on_send=refuse)
    assert nights.counts.failed == 0
    if not committed:
        app.commit()
        assert log(nights, "status, last_error") == [("pending", "550 no such user")]
        nights.make_due()
        nights.stage()

    assert [message.to for message in nights.sent] == ["new@example.org"]
    assert log(nights, "attempts") == [(1 if committed else 2,)]


@pytest.mark.usefixtures("kari")
def test_address_entered_while_its_absence_is_stored_is_used(
    nights: Nights, other: Connection, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mentor is locked until the failure is stored, so the trigger of the update finds it."""
    nights.review()
    nights.execute("UPDATE mentors SET email = NULL")
    app.autocommit = True  # each look at pg_stat_activity needs a new snapshot
    begun, read_recipient = threading.Event(), reminder_mail_module.read_recipient

    def look(connection: Connection, mentor_id: UUID) -> object:
        if not begun.is_set():
            begun.set()
            until(lambda: waits_for_a_lock(app, other))
        return read_recipient(connection, mentor_id)

    monkeypatch.setattr(reminder_mail_module, "read_recipient", look)
    with in_background(lambda: begun.wait(20) and other.execute("UPDATE mentors SET email = 'new@example.org'")):
        nights.stage()  # it may already use the new address
    nights.stage()

    assert [message.to for message in nights.channel.sent] == ["new@example.org"]


def test_failed_reminder_is_an_alert_for_14_days_after_queueing(nights: Nights) -> None:
    """A first import queues reminders long after their threshold."""
    for number in (40, 5):
        nights.certified(until=number, email=None)

    nights.night()

    nights.execute("UPDATE cert_notification_log SET queued_at = %s", TODAY)
    assert [len(read_alerts(nights.connection, today=day(number))) for number in (0, 14, 15)] == [2, 2, 0]


@pytest.mark.usefixtures("kari")
def test_deferred_reminder_is_an_alert_a_day_after_the_first_refusal(nights: Nights) -> None:
    """It is in one digest, and an alert until the mail arrives. Days without a mail server do not count."""
    full = RecipientDeferredError("the mail server deferred the recipient (452 4.2.2 mailbox full)")
    nights.coordinator()
    nights.review()
    nights.execute("UPDATE cert_notification_log SET queued_at = now() - interval '2 days'")
    assert [alert.kind for alert in read_alerts(nights.connection, today=TODAY)] == ["waiting_reminders"]

    assert len(nights.digests(fails=full, kind="reminder")) == 1

    assert read_alerts(nights.connection, today=TODAY) == []
    nights.execute("UPDATE cert_notification_log SET deferred_since = deferred_since - interval '25 hours'")
    digests = []
    for number in range(1, 4):
        nights.make_due()
        digests += nights.digests(number, fails=full, kind="reminder")
    (alert,) = read_alerts(nights.connection, today=TODAY)
    assert (alert.kind, alert.cause, alert.error) == ("failed_reminders", "mail_delayed", str(full))
    assert read_attention(nights.connection, today=TODAY).counts[Kind.FAILED_REMINDERS].number == 1
    (digest,) = digests
    assert "* Kari (M1001), gjelder sertifikatet" in digest.text
    assert "Påminnelsen har kanskje ikke kommet fram. Vi prøver igjen automatisk." in digest.text
    nights.make_due()
    assert [message.kind for message in nights.night(4)] == ["reminder"]
    assert read_alerts(nights.connection, today=TODAY) == []
