"""A certificate that is entered anew has another id; the mentor has had the mail all the same."""

from datetime import date, timedelta
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import OutcomeUnknownError
from certjob.mail.reminder_mail import QueuedReminder, ReminderMail
from certjob.outbox.claims import Lease
from tests.support.channels import BlockingStage
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, review
from tests.support.nights import CollectingChannel, night

FIRST_DAY = date(2024, 1, 1)
LOG = "SELECT threshold_days, status, cert_id FROM cert_notification_log ORDER BY id"


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    """A mentor of an organisation without a portal, without any certificate."""
    return facts.mentor(facts.organisation("nhf", portal=None), email="kari@example.org")


def days(number: int) -> date:
    """The day so many days after today."""
    return TODAY + timedelta(days=number)


def enter_anew(facts: Facts, mentor: UUID, *kinds: str) -> list[UUID]:
    """Delete all certificates and write them again, as an app does that copies another one's table every day."""
    facts.connection.execute("DELETE FROM certificates")
    return [facts.certificate(mentor, days(25), kind=kind) for kind in kinds or ("likeperson",)]


def test_an_app_that_writes_all_certificates_anew_every_day_mails_once_per_threshold(
    connection: Connection, facts: Facts, mentor: UUID
) -> None:
    """28 nights, each with new ids: the messages are those of two certificates."""
    channel = CollectingChannel()

    for number in range(28):
        enter_anew(facts, mentor, "likeperson", "samtale")
        plan = night(connection, days(number), dry_run=True)
        report = night(connection, days(number), channel=channel)
        assert plan.review is not None
        assert report.review is not None
        assert plan.review.reminders_queued == report.review.reminders_queued

    assert sorted(message.threshold_days or 0 for message in channel.sent) == sorted([30, 14, 7, 1, -1] * 2)


@pytest.mark.parametrize("first_day", [FIRST_DAY - timedelta(days=1), FIRST_DAY + timedelta(days=1)])
def test_a_corrected_first_day_mails_nobody_again(
    connection: Connection, facts: Facts, mentor: UUID, first_day: date
) -> None:
    """`load` takes another issued_on for another certificate; with the same end it tells the mentor nothing new."""
    facts.certificate(mentor, days(25), issued_on=FIRST_DAY)
    channel = CollectingChannel()
    night(connection, channel=channel)
    facts.certificate(mentor, days(25), issued_on=first_day)

    night(connection, channel=channel)
    facts.connection.execute("DELETE FROM certificates WHERE issued_on = %s", (FIRST_DAY,))
    night(connection, channel=channel)
    night(connection, days(11), channel=channel)

    assert [message.threshold_days for message in channel.sent] == [30, 14]


def test_another_kind_with_the_same_end_is_another_matter(connection: Connection, facts: Facts, mentor: UUID) -> None:
    """Two certificates that both exist are two messages, whenever the second one is entered."""
    facts.certificate(mentor, days(25))
    channel = CollectingChannel()
    night(connection, channel=channel)
    facts.certificate(mentor, days(25), kind="samtale")

    night(connection, channel=channel)

    assert ["samtale" in message.subject for message in channel.sent] == [False, True]


def test_another_date_is_another_matter(connection: Connection, facts: Facts, mentor: UUID) -> None:
    """A certificate that is deleted and comes back with another end is reminded of."""
    facts.certificate(mentor, days(25))
    channel = CollectingChannel()
    night(connection, channel=channel)
    connection.execute("DELETE FROM certificates")
    facts.certificate(mentor, days(26))

    night(connection, channel=channel)

    assert [message.expires_on for message in channel.sent] == [days(25), days(26)]


def test_a_date_that_was_mailed_about_before_another_one_counts(
    connection: Connection, facts: Facts, mentor: UUID
) -> None:
    """Mistyped in place, mailed about, then deleted and entered as it was first: the mentor has had that mail."""
    certificate = facts.certificate(mentor, days(25))
    channel = CollectingChannel()
    night(connection, channel=channel)
    connection.execute("UPDATE certificates SET expires_on = %s WHERE id = %s", (days(26), certificate))
    night(connection, channel=channel)
    enter_anew(facts, mentor)

    planned = night(connection, dry_run=True).review
    night(connection, channel=channel)

    assert [message.expires_on for message in channel.sent] == [days(25), days(26)]
    assert planned is not None
    assert planned.reminders_queued == 0


@pytest.mark.parametrize("status", ["pending", "failed", "cancelled", "superseded"])
def test_what_was_not_sent_goes_along_too(connection: Connection, facts: Facts, mentor: UUID, status: str) -> None:
    """One row about one date: it is sent, or shown as failed, once."""
    enter_anew(facts, mentor)
    review(connection)
    connection.execute("UPDATE cert_notification_log SET status = %s, last_error = 'said no'", (status,))
    (certificate,) = enter_anew(facts, mentor)
    channel = CollectingChannel()

    night(connection, channel=channel)

    settled = "failed" if status == "failed" else "sent"
    assert facts.rows(LOG) == [(30, settled, certificate)]
    assert len(channel.sent) == (settled == "sent")


def test_a_repeat_after_an_unknown_outcome_says_so(connection: Connection, facts: Facts, mentor: UUID) -> None:
    """It is the same message, with the same Message-ID."""

    def lose_the_answer(_message: object) -> None:
        message = "no answer"
        raise OutcomeUnknownError(message)

    enter_anew(facts, mentor)
    lost = CollectingChannel(on_send=lose_the_answer)
    night(connection, channel=lost)
    (before,) = facts.rows("SELECT id FROM cert_notification_log")
    enter_anew(facts, mentor)
    make_due(facts, "cert_notification_log")
    channel = CollectingChannel()

    night(connection, channel=channel)

    assert [message.repeat for message in channel.sent] == [True]
    assert channel.sent[0].idempotency_key == f"reminder-{before[0]}-0"


@pytest.mark.parametrize("moment", ["before the draft", "at the server"])
def test_one_that_is_being_sent_has_no_twin(
    connection: Connection, facts: Facts, mentor: UUID, database_url: str, moment: str
) -> None:
    """Its certificate is entered anew and another run reviews meanwhile: one mail, about the new row."""
    enter_anew(facts, mentor)
    review(connection)
    entered: list[UUID] = []

    def enter_and_review(_message: object = None) -> None:
        with database.connect(database_url) as other:
            entered.extend(enter_anew(Facts(other), mentor))
            review(other)

    class Interrupted(ReminderMail):
        def claim(self) -> tuple[QueuedReminder | None, Lease]:
            claimed = super().claim()
            if not entered:
                enter_and_review()
            return claimed

    channel = CollectingChannel(on_send=enter_and_review if moment == "at the server" else None)
    kind = ReminderMail if moment == "at the server" else Interrupted
    assert BlockingStage(connection, kind(connection, today=TODAY), channel).run() is None
    night(connection, channel=channel)

    assert [message.repeat for message in channel.sent] == [False]
    assert facts.rows(LOG) == [(30, "sent", entered[0])]
