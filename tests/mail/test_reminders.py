"""Each mentor is reminded once per threshold, and only while it is still true."""

import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import RecipientDeferredError, RecipientRefusedError
from certjob.mail import reminder_mail as reminder_mail_module
from certjob.mail.message import OutgoingMessage
from certjob.mail.reminder_mail import QueuedReminder
from certjob.mail.reminders import CertificationReminderService, find_new_reminders
from certjob.mail.stage import MailCounts
from certjob.night.report import RunReport
from certjob.outbox.claims import Answer, Settlement
from certjob.review.attention import Kind, read_attention
from certjob.views.alerts import read_alerts
from tests.support.channels import BlockingStage, reminder_mail
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, review, run_out
from tests.support.nights import CollectingChannel, in_background, night
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

NO_USER = RecipientRefusedError("550 no such user")


def day(number: int) -> date:
    return TODAY + timedelta(days=number)


class Log:
    """A mentor whose certificate is in force for 25 days more (the 30-day reminder is due), and what becomes of it."""

    report: RunReport

    def __init__(self, connection: Connection, facts: Facts) -> None:
        self.connection = connection
        self.facts = facts
        self.organisation = facts.organisation("nhf", portal=None)
        self.mentor = facts.mentor(self.organisation, email="kari@example.org")
        self.certificate = facts.certificate(self.mentor, day(25))

    def execute(self, statement: str, *parameters: object) -> None:
        self.connection.execute(statement.encode(), parameters)

    def review(self, number: int = 0) -> None:
        review(self.connection, day(number))

    def move(self, number: int) -> None:
        """Change the last day of the certificate in place, as the app does, and review."""
        self.execute("UPDATE certificates SET expires_on = %s WHERE id = %s", day(number), self.certificate)
        self.review()

    def send(self, number: int = 0) -> list[OutgoingMessage]:
        """What a night sends through a channel that takes everything."""
        channel = CollectingChannel()
        self.report = night(self.connection, day(number), channel=channel)
        return channel.sent

    def deliver(
        self, number: int = 0, *, on_send: Callable[[OutgoingMessage], object] = lambda _message: None
    ) -> tuple[MailCounts, list[OutgoingMessage]]:
        """The mail stage alone, without a review: what it counted and sent."""
        channel = CollectingChannel(on_send=on_send)  # type: ignore[arg-type]
        stage = BlockingStage(self.connection, reminder_mail(self.connection, today=day(number)), channel)
        assert stage.run() is None
        return stage.counts, channel.sent

    def claim(self) -> QueuedReminder:
        reminder, _ = reminder_mail(self.connection).claim()
        assert reminder is not None
        return reminder

    def settle(self, reminder: QueuedReminder) -> bool:
        return reminder_mail(self.connection).settle(reminder, Settlement(status="sent")) is Answer.SETTLED

    def rows(self, columns: str = "threshold_days, status") -> list[tuple[object, ...]]:
        return self.facts.rows(f"SELECT {columns} FROM cert_notification_log ORDER BY threshold_days DESC, id")

    @property
    def history(self) -> list[tuple[object, ...]]:
        """The earlier cycles: how each ended, about which date, and whether it may have arrived."""
        return self.facts.rows(
            "SELECT h ->> 'status', (h ->> 'expires_on')::date, (h ->> 'maybe_sent')::boolean"
            " FROM cert_notification_log, jsonb_array_elements(history) WITH ORDINALITY AS e (h, n) ORDER BY n"
        )


@pytest.fixture
def log(connection: Connection, facts: Facts) -> Log:
    return Log(connection, facts)


@pytest.fixture(autouse=True)
def the_plan_counts_what_is_queued(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In every scene of this file ``find_new_reminders``, for plan and guards, says what the upsert then queues."""
    queue = CertificationReminderService.queue
    both: list[tuple[list[UUID], list[UUID]]] = []

    def look(self: CertificationReminderService, decisions: Iterable[Decision]) -> list[UUID]:
        decided = list(decisions)
        found = sorted(mentor_id for mentor_id, _ in find_new_reminders(self._connection, decided))
        queued = queue(self, decided)
        both.append((found, sorted(queued)))
        return queued

    monkeypatch.setattr(CertificationReminderService, "queue", look)
    yield
    assert [found for found, _ in both] == [queued for _, queued in both]


def test_the_same_date_again_does_nothing_and_another_kind_is_another_reminder(log: Log) -> None:
    """Whatever the first has become; a cancelled or superseded one would come back."""
    log.review()
    for status in ("pending", "sent", "failed"):
        log.execute("UPDATE cert_notification_log SET status = %s", status)
        before = log.rows("row_to_json(cert_notification_log)::text")
        log.execute("UPDATE mentors SET review_on = '-infinity'")
        log.review()
        assert log.rows("row_to_json(cert_notification_log)::text") == before
    log.facts.certificate(log.mentor, day(25), kind="first-aid")

    log.review()

    assert log.rows() == [(30, "failed"), (30, "pending")]


def test_an_extension_in_place_rearms_it(log: Log) -> None:
    """The earlier cycle goes to the history; the row is as new, and the message another one, by its cycle."""
    (first,) = log.send()
    log.execute("UPDATE cert_notification_log SET attempts = 3, last_error = 'put off', maybe_sent = true")
    log.move(26)

    new = "status, attempts, last_error, sent_at, next_attempt_at <= now(), claim_token, maybe_sent"
    assert log.rows(new) == [("pending", 0, None, None, True, None, False)]
    assert log.history == [("sent", day(25), True)]
    assert log.rows("history[0] ->> 'attempts', history[0] ->> 'last_error'") == [("3", "put off")]
    (second,) = log.send()
    assert (second.expires_on, first.idempotency_key[-2:], second.idempotency_key[-2:]) == (day(26), "-0", "-1")
    log.move(27)
    log.move(28)
    assert log.claim().cycle == 3


def test_a_typo_that_is_corrected_loses_no_reminder_and_mails_nobody_twice(log: Log) -> None:
    """One superseded by a nearer date comes back. To and fro as often as one likes: each date is mailed about once."""
    log.review()
    log.move(10)
    assert log.rows() == [(30, "superseded"), (14, "pending")]
    log.move(25)
    assert [message.threshold_days for message in log.send()] == [30]
    assert log.rows() == [(30, "sent"), (14, "cancelled")]
    log.move(26)
    log.move(25)
    assert (log.send(), log.rows()[0]) == ([], (30, "cancelled"))

    sent = []
    for number in (26, 25, 26, 25):
        log.move(number)
        sent += log.send()

    assert [message.expires_on for message in sent] == [day(26)]


def test_a_date_that_was_mailed_about_stays_so_when_its_certificate_is_gone(log: Log) -> None:
    """Entered anew with a wrong last day, then with the right one in place: the mentor has had a mail about each."""
    log.send()
    log.execute("DELETE FROM certificates")
    log.certificate = log.facts.certificate(log.mentor, day(24))
    log.send()

    log.move(25)

    assert log.send() == []
    log.move(26)
    (sent,) = log.send()
    assert sent.expires_on == day(26)


@pytest.mark.parametrize("claimed", [False, True])
def test_one_cancelled_by_mistake_comes_back_as_the_same_message(log: Log, claimed: bool) -> None:
    """Revoked for a while; and if a process died after the server had taken it, the copy is a repeat."""
    log.review()
    if claimed:
        log.claim()
        run_out(log.facts, "cert_notification_log")
    log.execute("UPDATE certificates SET revoked_at = now()")
    assert (log.send(), log.rows()) == ([], [(30, "cancelled")])
    log.execute("UPDATE certificates SET revoked_at = NULL")

    (copy,) = log.send()

    assert (copy.repeat, copy.idempotency_key[-2:]) == (claimed, "-0")
    assert log.history == [("cancelled", day(25), claimed)]


def test_a_more_urgent_one_supersedes_an_older_unsent_one_about_the_same_certificate(log: Log) -> None:
    """What is over stays as it is; another certificate's is another matter."""
    kinds = {
        status: log.facts.certificate(log.mentor, day(25), kind=status) for status in ("failed", "sent", "cancelled")
    }
    kinds |= {"pending": log.certificate, "longer": log.facts.certificate(log.mentor, day(50), kind="longer")}
    log.review()
    for status in ("failed", "sent", "cancelled"):
        log.execute("UPDATE cert_notification_log SET status = %s WHERE cert_id = %s", status, kinds[status])

    log.review(12)

    older = log.facts.rows("SELECT cert_id, status FROM cert_notification_log WHERE threshold_days > 14")
    rows = {cert_id: status for cert_id, status in older}  # noqa: C416 - dict() knows no tuples of objects
    became = {kind: rows[certificate] for kind, certificate in kinds.items()}
    over = {"sent": "sent", "cancelled": "cancelled", "longer": "pending"}
    assert became == {"pending": "superseded", "failed": "superseded", **over}
    assert log.rows().count((14, "pending")) == 4


def test_one_that_is_claimed_just_now_is_left_to_its_claim(log: Log) -> None:
    """It is asked again under it. Once its lease has run out its sender is gone; that it may have arrived stays."""
    log.review()
    reminder = log.claim()
    log.review(12)
    assert log.rows() == [(30, "pending"), (14, "pending")]
    with log.connection.transaction(force_rollback=True):
        unsent = reminder_mail(log.connection, today=day(12)).draft(reminder)
        assert isinstance(unsent, Settlement)
        assert unsent.status == "cancelled"
    run_out(log.facts, "cert_notification_log")

    log.review(19)

    assert log.rows() == [(30, "superseded"), (14, "superseded"), (7, "pending")]
    assert log.rows("maybe_sent")[0] == (True,)
    assert not log.settle(reminder)


def test_a_claim_whose_lease_ran_out_or_whose_row_was_rearmed_writes_nothing(log: Log) -> None:
    """Nobody knows what the vanished process did, or whether that about the old date arrived: a repeat says so."""
    row = "status, expires_on, maybe_sent"
    log.review()
    first = log.claim()
    run_out(log.facts, "cert_notification_log")
    second = log.claim()
    assert (first.maybe_sent, second.maybe_sent, second.attempts) == (False, True, 2)
    assert (log.settle(first), log.rows()) == (False, [(30, "pending")])

    log.move(26)

    assert (log.settle(second), log.rows(row)) == (False, [("pending", day(26), False)])
    assert log.history == [("pending", day(25), True)]
    log.move(25)
    assert log.rows(row) == [("pending", day(25), True)]
    assert log.settle(log.claim())


def test_untried_ones_come_first(log: Log, other: Connection) -> None:
    """What a server keeps refusing must not stand before the new ones. What another session holds is passed by."""
    for _ in range(3):
        log.facts.certified_mentor(log.organisation, day(5))
    log.review()
    first, second, third, fourth = (
        row[0] for row in log.facts.rows("SELECT id FROM cert_notification_log ORDER BY id")
    )
    tried = "UPDATE cert_notification_log SET attempts = 2, next_attempt_at = now() - interval '1 day' WHERE id <= %s"
    log.execute(tried, second)

    with other.transaction():
        other.execute("SELECT FROM cert_notification_log WHERE id = %s FOR UPDATE", (third,))
        assert [log.claim().id for _ in range(2)] == [fourth, first]

    assert [log.claim().id for _ in range(2)] == [third, second]


def test_what_is_not_true_any_more_is_cancelled_unless_somebody_just_changes_the_mentor(log: Log, app: App) -> None:
    """Then it waits for what comes of it, and holds up nobody else's mail. No attempt is counted."""
    log.review()
    log.execute("UPDATE certificates SET revoked_at = now()")
    app.execute("UPDATE mentors SET full_name = 'Kari Hansen'")
    counts, _ = log.deliver()
    assert (counts.cancelled, counts.lost) == (0, 0)
    assert log.rows("status, attempts, claim_token, next_attempt_at > now()") == [("pending", 0, None, True)]
    app.rollback()
    make_due(log.facts, "cert_notification_log")

    counts, sent = log.deliver()

    assert (counts.cancelled, counts.sent, counts.lost, sent) == (1, 0, 0, [])
    assert log.rows("status, last_error, attempts, claim_token") == [("cancelled", "revoked", 0, None)]


def test_what_is_still_true_is_sent_with_the_facts_of_the_moment(log: Log) -> None:
    """The address of now, not of the review; a mentor who is deleted between claim and message gets nothing."""
    log.review()
    log.execute("UPDATE mentors SET email = ' new@example.org ', full_name = 'Kari Hansen'")
    _, (message,) = log.deliver()
    assert (message.to, message.mentor_id) == ("new@example.org", log.mentor)
    assert "Kari Hansen" in message.text
    log.move(26)
    log.execute("ALTER TABLE mentors DISABLE TRIGGER mentor_deleted")
    reminder = log.claim()
    log.execute("DELETE FROM mentors")

    assert reminder_mail(log.connection).draft(reminder) is None
    assert not log.settle(reminder)


@pytest.mark.parametrize(("expires", "issued", "later", "threshold"), [(25, -100, 12, 14), (21, 1, 1, 30)])
def test_one_of_a_later_day_that_was_cancelled_comes_on_its_day(
    log: Log, expires: int, issued: int, later: int, threshold: int
) -> None:
    """A night on a wrong day had queued it, or one before midnight meets a certificate that begins tomorrow."""
    log.execute("UPDATE certificates SET expires_on = %s, issued_on = %s", day(expires), day(issued))
    log.review(later)
    counts, _ = log.deliver()

    assert (counts.cancelled, [message.threshold_days for message in log.send(later)]) == (1, [threshold])


@pytest.mark.parametrize("attempts", [0, 1])
def test_one_of_the_next_day_is_left_to_that_day(log: Log, attempts: int) -> None:
    """A night that goes on after midnight meets what the night of the new day queued: not its business."""
    log.move(15)
    assert [message.threshold_days for message in log.send()] == [30]
    log.review(1)
    log.execute("UPDATE cert_notification_log SET attempts = %s WHERE status = 'pending'", attempts)

    (_, old), (_, new) = log.deliver(), log.deliver(1)

    assert (old, [message.threshold_days for message in new]) == ([], [14])


@pytest.mark.parametrize(
    ("email", "reason", "code"),
    [
        (None, "no address", "no_address"),
        ("   ", "no address", "no_address"),
        ("kari@", "the e-mail address is not an address that mail can be sent to; correct it", "bad_address"),
    ],
)
def test_a_corrected_address_sends_it_the_next_night(log: Log, email: str | None, reason: str, code: str) -> None:
    """Failed before, no attempt counted, counted once and shown; sent without a word of a repeat."""
    log.execute("UPDATE mentors SET email = %s", email)
    for number in range(2):
        assert log.send(number) == []
        assert log.report.to_document()["reminders"]["failed"] == 1 - number
        assert log.report.reasons == ["1 reminder was not delivered; see `certjob alerts`"]
    assert log.rows("status, last_error, failure_code, attempts") == [("failed", reason, code, 0)]
    log.execute("UPDATE mentors SET email = 'kari@example.org'")

    assert [(message.to, message.repeat) for message in log.send(2)] == [("kari@example.org", False)]
    assert log.rows("status, attempts, last_error") == [("sent", 1, None)]


@pytest.mark.parametrize("committed", [True, False])
def test_an_address_that_is_corrected_while_the_server_refuses_the_old_one_is_tried(
    log: Log, app: App, committed: bool
) -> None:
    """In the very second of the refusal, or committed after it, when neither sees the other: it is not lost."""
    log.review()

    def refuse(message: OutgoingMessage) -> None:
        if message.to == "kari@example.org":
            app.execute("UPDATE mentors SET email = 'new@example.org'")
            if committed:
                app.commit()
            raise NO_USER

    counts, sent = log.deliver(on_send=refuse)
    if not committed:
        app.commit()
        assert log.rows("status, last_error") == [("pending", "550 no such user")]
        make_due(log.facts, "cert_notification_log")
        _, sent = log.deliver()

    assert ([message.to for message in sent], counts.failed) == (["new@example.org"], 0)
    assert log.rows("attempts") == [(1 if committed else 2,)]


def test_an_address_that_is_entered_while_its_lack_is_noted_is_used(
    log: Log, other: Connection, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mentor is held from the question to the answer: it is written after the failure, which its trigger finds."""
    log.review()
    log.execute("UPDATE mentors SET email = NULL")
    app.autocommit = True  # one who looks, at each look anew
    begun, read_recipient = threading.Event(), reminder_mail_module.read_recipient

    def look(connection: Connection, mentor_id: UUID) -> object:
        if not begun.is_set():
            begun.set()
            until(lambda: waits_for_a_lock(app, other))
        return read_recipient(connection, mentor_id)

    monkeypatch.setattr(reminder_mail_module, "read_recipient", look)
    with in_background(lambda: begun.wait(20) and other.execute("UPDATE mentors SET email = 'new@example.org'")):
        _, sent = log.deliver()  # it may be in time for this one
    sent += log.deliver()[1]

    assert [message.to for message in sent] == ["new@example.org"]


def test_one_that_failed_is_shown_though_its_threshold_is_long_past(log: Log) -> None:
    """A first import queues late: the fourteen days of showing it count from then."""
    log.move(40)
    log.facts.certificate(log.mentor, day(5), kind="first-aid")
    log.execute("UPDATE mentors SET email = NULL")

    log.send()

    log.execute("UPDATE cert_notification_log SET queued_at = %s", TODAY)
    shown = [database.fetch(log.connection, "read_failed_reminders", {"today": day(number)}) for number in (0, 95)]
    assert [len(rows) for rows in shown] == [2, 0]


def test_one_that_is_put_off_for_a_day_is_told_to_people_once(log: Log) -> None:
    """Servers greylist: that passes. A full mailbox is in the alerts as long as it lasts, and in one digest."""
    full = "the mail server put the recipient off (452 4.2.2 mailbox full)"
    statement = "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'berit@example.org')"
    log.execute(statement, log.organisation)

    def refuse(message: OutgoingMessage) -> None:
        if message.kind == "reminder":
            raise RecipientDeferredError(full)

    def shown() -> list[str | None]:
        reminders = read_alerts(log.connection, today=TODAY).failed_reminders
        assert read_attention(log.connection, today=TODAY).counts[Kind.FAILED_REMINDERS].number == len(reminders)
        return [reminder.error for reminder in reminders]

    channel = CollectingChannel(on_send=refuse)
    night(log.connection, channel=channel)
    assert (shown(), len(channel.sent)) == ([], 1)
    log.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '25 hours'")
    for number in range(1, 4):
        make_due(log.facts, "cert_notification_log")
        night(log.connection, day(number), channel=channel)

    assert shown() == [full]
    _, page = channel.sent
    assert "* Kari Nordmann (M1001), gjelder sertifikatet" in page.text
    assert "Kanskje er postkassen full. Vi prøver igjen automatisk (452 4.2.2 mailbox full)." in page.text
    make_due(log.facts, "cert_notification_log")
    assert [message.kind for message in log.send(4)] == ["reminder"]
    assert shown() == []
