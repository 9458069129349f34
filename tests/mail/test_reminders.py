"""Each mentor is reminded once per threshold, and only while it is still true."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import date, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision, Organisation, Reminder
from certjob.errors import RecipientDeferredError, RecipientRefusedError
from certjob.mail.message import OutgoingMessage
from certjob.mail.queue import Unsent, Writer
from certjob.mail.reminder_mail import QueuedReminder, ReminderMail
from certjob.mail.reminders import CertificationReminderService
from certjob.mail.stage import MailCounts
from certjob.review.attention import Kind, read_attention
from certjob.views.alerts import read_alerts
from tests.support.channels import BlockingStage, reminder_mail
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, message_ids, review, run_out
from tests.support.nights import CollectingChannel, in_background, night
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

LOG = "SELECT threshold_days, status FROM cert_notification_log ORDER BY threshold_days DESC"
HISTORY = """
    SELECT h ->> 'status', (h ->> 'expires_on')::date, (h ->> 'maybe_sent')::boolean
    FROM cert_notification_log, jsonb_array_elements(history) WITH ORDINALITY AS e (h, n) ORDER BY n
"""
"""The earlier cycles: how each ended, about which date."""


@pytest.fixture
def observer(database_url: str) -> Iterator[Connection]:
    """A connection that looks at the locks of others."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    """A mentor of an organisation without a portal, without any certificate."""
    return facts.mentor(facts.organisation("nhf", portal=None), email="kari@example.org")


@pytest.fixture
def certificate(facts: Facts, mentor: UUID) -> UUID:
    """The mentor's certificate, in force for 25 days more: the 30-day reminder is due."""
    return facts.certificate(mentor, days(25))


def days(number: int) -> date:
    """The day so many days after today."""
    return TODAY + timedelta(days=number)


def move(connection: Connection, certificate_id: UUID, expires_on: date) -> None:
    """Change the certificate in place, as the app does, and review."""
    connection.execute("UPDATE certificates SET expires_on = %s WHERE id = %s", (expires_on, certificate_id))
    review(connection)


def send(connection: Connection, today: date = TODAY) -> list[OutgoingMessage]:
    """What a night sends through a channel that takes everything."""
    channel = CollectingChannel()
    night(connection, today, channel=channel)
    return channel.sent


def deliver(connection: Connection, channel: CollectingChannel, today: date = TODAY) -> MailCounts:
    """The mail stage alone, without a review."""
    stage = BlockingStage(connection, reminder_mail(connection, today=today), channel)
    assert stage.run() is None
    return stage.counts


def claim_one(connection: Connection) -> QueuedReminder:
    reminder, _ = reminder_mail(connection).claim()
    assert reminder is not None
    return reminder


class TestOnce:
    """Every reminder goes through one upsert."""

    @pytest.mark.parametrize("status", ["pending", "sent", "failed"])
    def test_the_same_date_again_does_nothing(
        self, connection: Connection, facts: Facts, certificate: UUID, status: str
    ) -> None:
        """Whatever it has become; a cancelled or superseded one comes back."""
        review(connection)
        connection.execute("UPDATE cert_notification_log SET status = %s", (status,))
        before = facts.rows("SELECT row_to_json(l)::text FROM cert_notification_log l")
        connection.execute("UPDATE mentors SET review_on = '-infinity'")

        review(connection)

        assert facts.rows("SELECT row_to_json(l)::text FROM cert_notification_log l") == before

    def test_one_superseded_by_a_typo_comes_back(self, connection: Connection, facts: Facts, certificate: UUID) -> None:
        """A date mistyped to a nearer one, then corrected: the mentor still gets the reminder, once."""
        review(connection)
        move(connection, certificate, days(10))
        assert facts.rows(LOG) == [(30, "superseded"), (14, "pending")]
        move(connection, certificate, days(25))

        assert [message.threshold_days for message in send(connection)] == [30]
        assert facts.rows(LOG) == [(30, "sent"), (14, "cancelled")]

    def test_an_extension_in_place_rearms_it(self, connection: Connection, facts: Facts, certificate: UUID) -> None:
        """The earlier cycle goes to the history; the row is as new, and the message another one."""
        (first,) = send(connection)
        connection.execute("UPDATE cert_notification_log SET attempts = 3, last_error = 'put off', maybe_sent = true")
        move(connection, certificate, days(26))

        assert facts.rows(
            "SELECT status, attempts, last_error, sent_at, next_attempt_at <= now(), claim_token, maybe_sent"
            " FROM cert_notification_log"
        ) == [("pending", 0, None, None, True, None, False)]
        assert facts.rows(HISTORY) == [("sent", days(25), True)]
        assert facts.rows(
            "SELECT history[0] ->> 'attempts', history[0] ->> 'last_error' FROM cert_notification_log"
        ) == [("3", "put off")]
        (second,) = send(connection)
        assert second.expires_on == days(26)
        assert message_ids([first]) != message_ids([second])

    def test_a_typo_corrected_back_mails_nobody_twice(
        self, connection: Connection, facts: Facts, certificate: UUID
    ) -> None:
        """Mailed about the right date; the wrong one was never mailed about."""
        assert len(send(connection)) == 1
        move(connection, certificate, days(26))
        move(connection, certificate, days(25))

        assert send(connection) == []
        assert facts.rows(LOG) == [(30, "cancelled")]
        assert send(connection, days(1)) == []

    def test_a_typo_that_was_mailed_about_is_corrected_without_a_third_mail(
        self, connection: Connection, certificate: UUID
    ) -> None:
        """Right date, wrong date, right date again: two mails, then silence, as often as it goes to and fro."""
        sent = len(send(connection))
        for number in (26, 25, 26, 25):
            move(connection, certificate, days(number))
            sent += len(send(connection))

        assert sent == 2

    @pytest.mark.parametrize("claimed", [False, True])
    def test_one_cancelled_by_mistake_comes_back_as_the_same_message(
        self, connection: Connection, facts: Facts, certificate: UUID, claimed: bool
    ) -> None:
        """Revoked for a while; and if a process died after the server had taken it, the copy is a repeat."""
        review(connection)
        if claimed:
            claim_one(connection)
            run_out(facts, "cert_notification_log")
        connection.execute("UPDATE certificates SET revoked_at = now()")
        assert send(connection) == []
        assert facts.rows(LOG) == [(30, "cancelled")]
        connection.execute("UPDATE certificates SET revoked_at = NULL")

        (copy,) = send(connection)

        assert (copy.repeat, copy.idempotency_key[-2:]) == (claimed, "-0")
        assert facts.rows(HISTORY) == [("cancelled", days(25), claimed)]

    def test_the_cycle_is_the_number_of_earlier_ones(self, connection: Connection, certificate: UUID) -> None:
        """It is part of the message's id."""
        review(connection)
        for number in (26, 27, 28):
            move(connection, certificate, days(number))

        assert claim_one(connection).cycle == 3

    def test_the_plan_counts_what_the_upsert_would_queue(
        self, connection: Connection, facts: Facts, mentor: UUID, certificate: UUID
    ) -> None:
        """New, settled, extended, cancelled and corrected back, another kind: ``find_new`` says what ``queue`` does."""
        organisation = Organisation(
            id=uuid4(), slug="nhf", has_portal=False, reminder_thresholds=(30,), optional_kinds=frozenset()
        )
        reminder = Reminder(cert_id=certificate, threshold_days=30, expires_on=days(25))
        decision = Decision(
            mentor_id=mentor,
            member_no="M1",
            organisation=organisation,
            transitions=(),
            pause=None,
            own_pause_id=None,
            reminders=(reminder,),
            visible=True,
            push=False,
            without_certificate=False,
            review_on=None,
        )
        mine = CertificationReminderService(connection, run_id=uuid4())
        queued = []
        for status, number in [
            ("pending", 25),
            ("pending", 25),
            ("sent", 26),
            ("sent", 25),
            ("cancelled", 26),
            ("cancelled", 25),
            ("superseded", 27),
            ("failed", 27),
            ("pending", 27),
        ]:
            due = replace(decision, reminders=(replace(reminder, expires_on=days(number)),))

            found = [mentor_id for mentor_id, _ in mine.find_new([due])]

            assert found == mine.queue([due]), (status, number)
            queued.append(len(found))
            connection.execute("UPDATE cert_notification_log SET status = %s", (status,))
        assert queued == [1, 0, 1, 1, 0, 1, 1, 1, 0]
        first_aid = facts.certificate(mentor, days(27), kind="first-aid")
        another = replace(decision, reminders=(replace(reminder, cert_id=first_aid, expires_on=days(27)),))
        assert [mentor_id for mentor_id, _ in mine.find_new([another])] == mine.queue([another]) == [mentor]


class TestSuperseded:
    """A more urgent reminder makes an older unsent one about the same certificate pointless."""

    @pytest.mark.parametrize(
        ("status", "becomes"),
        [("pending", "superseded"), ("failed", "superseded"), ("sent", "sent"), ("cancelled", "cancelled")],
    )
    def test_an_older_unsent_one_is_superseded(
        self, connection: Connection, facts: Facts, mentor: UUID, certificate: UUID, status: str, becomes: str
    ) -> None:
        """What is over stays as it is; another certificate's is another matter."""
        facts.certificate(mentor, days(50), kind="first-aid")
        review(connection)
        connection.execute("UPDATE cert_notification_log SET status = %s WHERE threshold_days = 30", (status,))

        review(connection, days(12))

        assert facts.rows(LOG) == [(60, "pending"), (30, becomes), (14, "pending")]

    def test_one_that_is_claimed_just_now_is_left_to_its_claim(
        self, connection: Connection, facts: Facts, certificate: UUID
    ) -> None:
        """It is asked again under it. Once its lease has run out its sender is gone; that it may have arrived stays."""
        review(connection)
        reminder = claim_one(connection)
        review(connection, days(12))
        assert facts.rows(LOG) == [(30, "pending"), (14, "pending")]
        with connection.transaction(force_rollback=True):
            assert reminder_mail(connection, today=days(12)).draft(reminder) is Unsent.CANCELLED
        run_out(facts, "cert_notification_log")

        review(connection, days(19))

        assert facts.rows(LOG) == [(30, "superseded"), (14, "superseded"), (7, "pending")]
        assert facts.rows("SELECT maybe_sent FROM cert_notification_log WHERE threshold_days = 30") == [(True,)]
        assert not reminder_mail(connection).settle(reminder)


class TestClaims:
    """Two runs at once."""

    def test_a_lease_that_ran_out_says_that_it_may_have_been_sent(
        self, connection: Connection, facts: Facts, certificate: UUID
    ) -> None:
        """Nobody knows what the vanished process did; its own settle comes too late."""
        review(connection)
        first = claim_one(connection)
        run_out(facts, "cert_notification_log")

        second = claim_one(connection)

        assert (first.maybe_sent, second.maybe_sent, second.attempts) == (False, True, 2)
        assert not reminder_mail(connection).settle(first)
        assert facts.rows(LOG) == [(30, "pending")]
        assert reminder_mail(connection).settle(second)

    def test_untried_ones_come_first(self, connection: Connection, facts: Facts, other: Connection) -> None:
        """What a server keeps refusing must not stand before the new ones. What another session holds is passed by."""
        organisation = facts.organisation(portal=None)
        for _ in range(4):
            facts.certified_mentor(organisation, days(5))
        review(connection)
        first, second, third, fourth = (
            row[0] for row in facts.rows("SELECT id FROM cert_notification_log ORDER BY id")
        )
        connection.execute(
            "UPDATE cert_notification_log SET attempts = 2, next_attempt_at = now() - interval '1 day'"
            " WHERE id IN (%s, %s)",
            (first, second),
        )

        with other.transaction():
            other.execute("SELECT FROM cert_notification_log WHERE id = %s FOR UPDATE", (third,))
            assert [claim_one(connection).id for _ in range(2)] == [fourth, first]

        assert [claim_one(connection).id for _ in range(2)] == [third, second]

    def test_a_rearmed_row_is_lost_to_its_claim(self, connection: Connection, facts: Facts, certificate: UUID) -> None:
        """The date changed while the message about the old one was on its way, and changed back: a repeat says so."""
        row = "SELECT status, expires_on, maybe_sent FROM cert_notification_log"
        review(connection)
        reminder = claim_one(connection)

        move(connection, certificate, days(26))

        assert not reminder_mail(connection).settle(reminder)
        assert facts.rows(row) == [("pending", days(26), False)]
        assert facts.rows(HISTORY) == [("pending", days(25), True)]
        move(connection, certificate, days(25))
        assert facts.rows(row) == [("pending", days(25), True)]

    def test_a_release_locks_in_the_order_of_everybody_else(
        self, connection: Connection, facts: Facts, other: Connection, app: App
    ) -> None:
        """While it waits for the first mentor's row it holds none of the later ones, so that nobody deadlocks."""
        organisation = facts.organisation(portal=None)
        for mentor_id in sorted((facts.mentor(organisation) for _ in range(5)), reverse=True):
            connection.execute(
                "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
                " VALUES (%s, 30, gen_random_uuid(), %s)",
                (mentor_id, days(25)),
            )
        mine = reminder_mail(connection)
        reminders = [claim_one(connection) for _ in range(5)]
        app.execute("SELECT 1 FROM cert_notification_log ORDER BY mentor_id LIMIT 1 FOR NO KEY UPDATE")

        with in_background(lambda: mine.reopen_refused(reminders, delay_seconds=0)):
            until(lambda: waits_for_a_lock(other, connection))
            app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE NOWAIT")
            app.commit()


class TestBeforeSending:
    """Under the claim the rules are asked again, on the facts of that moment."""

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ("UPDATE certificates SET revoked_at = now()", "revoked"),
            ("UPDATE organisations SET reminder_thresholds = '{60}'", "not due"),
        ],
    )
    def test_what_is_not_true_any_more_is_not_sent(
        self, connection: Connection, facts: Facts, certificate: UUID, change: str, reason: str
    ) -> None:
        """Cancelled with the reason, and no attempt counted; the fact came after the review."""
        review(connection)
        connection.execute(change.encode())
        channel = CollectingChannel()

        counts = deliver(connection, channel)

        assert channel.sent == []
        assert (counts.cancelled, counts.sent, counts.lost) == (1, 0, 0)
        assert facts.rows("SELECT status, last_error, attempts, claim_token FROM cert_notification_log") == [
            ("cancelled", reason, 0, None)
        ]

    def test_a_mentor_who_is_gone_gets_nothing(self, connection: Connection, certificate: UUID) -> None:
        """Deleted between claim and message, with the row: nobody is asked, nothing is lost."""
        review(connection)
        connection.execute("ALTER TABLE mentors DISABLE TRIGGER mentor_deleted")
        reminder = claim_one(connection)
        connection.execute("DELETE FROM mentors")

        assert reminder_mail(connection).draft(reminder) is Unsent.WAITS
        assert not reminder_mail(connection).settle(reminder)

    def test_what_is_still_true_is_sent_with_the_facts_of_the_moment(
        self, connection: Connection, mentor: UUID, certificate: UUID
    ) -> None:
        """The address of now, not of the review."""
        review(connection)
        connection.execute("UPDATE mentors SET email = ' new@example.org ', full_name = 'Kari Hansen'")
        channel = CollectingChannel()

        deliver(connection, channel)

        assert [(message.to, message.mentor_id) for message in channel.sent] == [("new@example.org", mentor)]
        assert "Kari Hansen" in channel.sent[0].text

    def test_one_that_is_right_again_before_it_is_cancelled_is_sent(
        self, connection: Connection, facts: Facts, other: Connection, certificate: UUID
    ) -> None:
        """Revoked by mistake and put right, and reviewed: before the question, or after the answer."""
        review(connection)
        connection.execute("UPDATE certificates SET revoked_at = now()")

        class Interrupted(ReminderMail):
            def _draft(self, item: QueuedReminder) -> Writer | str | None:
                draft = super()._draft(item)
                if isinstance(draft, str):
                    assert other.execute("SELECT FROM mentors FOR NO KEY UPDATE SKIP LOCKED").fetchall() == []
                return draft

        channel = CollectingChannel()
        stage = BlockingStage(connection, Interrupted(connection, today=TODAY), channel)
        assert stage.run() is None
        assert stage.counts.cancelled == 1
        connection.execute("UPDATE certificates SET revoked_at = NULL")
        review(connection)

        assert stage.run() is None

        assert [message.threshold_days for message in channel.sent] == [30]
        assert facts.rows(LOG) == [(30, "sent")]

    def test_while_somebody_changes_the_mentor_nothing_is_cancelled(
        self, connection: Connection, facts: Facts, app: App, certificate: UUID
    ) -> None:
        """It waits for what comes of it, and holds up nobody else's mail."""
        review(connection)
        connection.execute("UPDATE certificates SET revoked_at = now()")
        app.execute("UPDATE mentors SET full_name = 'Kari Hansen'")

        counts = deliver(connection, CollectingChannel())

        assert (counts.cancelled, counts.lost) == (0, 0)
        assert facts.rows(
            "SELECT status, attempts, claim_token, next_attempt_at > now() FROM cert_notification_log"
        ) == [("pending", 0, None, True)]

    @pytest.mark.parametrize(
        ("expires_in", "issued_in", "later", "threshold"), [(25, -100, 12, 14), (21, 1, 1, 30)], ids=["later", "begins"]
    )
    def test_one_of_a_later_day_that_was_cancelled_comes_on_its_day(
        self,
        connection: Connection,
        facts: Facts,
        mentor: UUID,
        expires_in: int,
        issued_in: int,
        later: int,
        threshold: int,
    ) -> None:
        """A night on a wrong day had queued it, or one before midnight meets a certificate that begins tomorrow."""
        facts.certificate(mentor, days(expires_in), issued_on=days(issued_in))
        review(connection, days(later))
        assert deliver(connection, CollectingChannel(), TODAY).cancelled == 1

        assert [message.threshold_days for message in send(connection, days(later))] == [threshold]

    def test_one_of_the_next_day_is_left_to_that_day(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """A night that goes on after midnight meets what the night of the new day queued: not its business."""
        facts.certificate(mentor, days(15))
        assert [message.threshold_days for message in send(connection)] == [30]
        review(connection, days(1))
        old, new = CollectingChannel(), CollectingChannel()

        deliver(connection, old, TODAY)
        deliver(connection, new, days(1))

        assert old.sent == []
        assert [message.threshold_days for message in new.sent] == [14]


class TestAddress:
    """No address, a wrong one, a corrected one."""

    @pytest.mark.parametrize(
        ("email", "reason", "code"),
        [
            (None, "no address", "no_address"),
            ("   ", "no address", "no_address"),
            ("kari@", "the e-mail address is not an address that mail can be sent to; correct it", "bad_address"),
        ],
    )
    def test_a_corrected_one_sends_it_the_next_night(
        self, connection: Connection, facts: Facts, certificate: UUID, email: str | None, reason: str, code: str
    ) -> None:
        """Failed before, no attempt counted, counted and shown once; sent without a word of a repeat."""
        connection.execute("UPDATE mentors SET email = %s", (email,))
        reports = [night(connection, days(number), channel=CollectingChannel()) for number in range(2)]

        assert facts.rows("SELECT status, last_error, failure_code, attempts FROM cert_notification_log") == [
            ("failed", reason, code, 0)
        ]
        assert [report.to_document()["reminders"]["failed"] for report in reports] == [1, 0]
        assert [report.reasons for report in reports] == [["1 reminder was not delivered; see `certjob alerts`"]] * 2
        connection.execute("UPDATE mentors SET email = 'kari@example.org'")
        assert [(message.to, message.repeat) for message in send(connection, days(2))] == [("kari@example.org", False)]
        assert facts.rows("SELECT status, attempts, last_error FROM cert_notification_log") == [("sent", 1, None)]

    @pytest.mark.parametrize("committed", [True, False])
    def test_one_that_is_corrected_while_the_server_refuses_the_old_one_is_tried(
        self, connection: Connection, facts: Facts, app: App, certificate: UUID, committed: bool
    ) -> None:
        """In the very second of the refusal, or committed after it, when neither sees the other: it is not lost."""
        review(connection)
        tried: list[object] = []

        def refuse(message: object) -> None:
            tried.append(message)
            if len(tried) == 1:
                app.execute("UPDATE mentors SET email = 'new@example.org'")
                if committed:
                    app.commit()
                text = "550 no such user"
                raise RecipientRefusedError(text)

        channel = CollectingChannel(on_send=refuse)
        counts = deliver(connection, channel)
        if not committed:
            app.commit()
            assert facts.rows("SELECT status, last_error FROM cert_notification_log") == [
                ("pending", "550 no such user")
            ]
            make_due(facts, "cert_notification_log")
            deliver(connection, channel)

        assert [message.to for message in channel.sent] == ["new@example.org"]
        assert counts.failed == 0

    def test_one_that_is_entered_while_its_lack_is_noted_is_used(
        self, connection: Connection, facts: Facts, other: Connection, observer: Connection, certificate: UUID
    ) -> None:
        """It is written after the failure of the row, which its trigger finds."""
        review(connection)
        connection.execute("UPDATE mentors SET email = NULL")
        begun = threading.Event()

        class Interrupted(ReminderMail):
            def _draft(self, item: QueuedReminder) -> Writer | str | None:
                if not begun.is_set():
                    begun.set()
                    until(lambda: waits_for_a_lock(observer, other))
                return super()._draft(item)

        def correct() -> None:
            begun.wait(20)
            other.execute("UPDATE mentors SET email = 'new@example.org'")

        channel = CollectingChannel()
        with in_background(correct):
            queue = Interrupted(connection, today=TODAY)
            assert BlockingStage(connection, queue, channel).run() is None
        deliver(connection, channel)

        assert [message.to for message in channel.sent] == ["new@example.org"]


@pytest.mark.parametrize("days_left", [40, 5])
def test_one_that_failed_is_shown_though_its_threshold_is_long_past(
    connection: Connection, facts: Facts, days_left: int
) -> None:
    """A first import queues late: the fourteen days of showing it count from then."""
    facts.certified_mentor(facts.organisation(portal=None), days(days_left), email=None)

    send(connection)

    connection.execute("UPDATE cert_notification_log SET queued_at = %s", (TODAY,))
    assert len(database.fetch(connection, "read_failed_reminders", {"today": TODAY})) == 1
    assert database.fetch(connection, "read_failed_reminders", {"today": days(days_left + 90)}) == []


def test_one_that_is_put_off_for_a_day_is_told_to_people_once(connection: Connection, facts: Facts) -> None:
    """Servers greylist: that passes. A full mailbox is in the alerts as long as it lasts, and in one digest."""
    full = "the mail server put the recipient off (452 4.2.2 mailbox full)"
    organisation = facts.organisation("nhf", portal=None)
    connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'berit@example.org')", (organisation,)
    )
    facts.certified_mentor(organisation, days(40), full_name="Kari")

    def refuse(message: OutgoingMessage) -> None:
        if message.kind == "reminder":
            raise RecipientDeferredError(full)

    def shown() -> list[str | None]:
        alerts = read_alerts(connection, today=TODAY)
        counted = read_attention(connection, today=TODAY).counts
        assert counted[Kind.FAILED_REMINDERS].number == len(alerts.reminders)
        return [reminder.error for reminder in alerts.reminders]

    channel = CollectingChannel(on_send=refuse)
    for number in range(4):
        night(connection, days(number), channel=channel)
        make_due(facts, "cert_notification_log")
        if number == 0:
            assert (shown(), channel.sent) == ([], [])
            connection.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '25 hours'")

    assert shown() == [full]
    (page,) = channel.sent
    assert "* Kari (M1001), gjelder sertifikatet" in page.text
    assert "Kanskje er postkassen full. Vi prøver igjen automatisk (452 4.2.2 mailbox full)." in page.text
    assert [message.kind for message in send(connection, days(4))] == ["reminder"]
    assert shown() == []
