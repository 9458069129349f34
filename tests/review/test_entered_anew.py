"""A certificate that is entered anew has another id; the mentor has had the mail all the same."""

from datetime import date, timedelta
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import OutcomeUnknownError
from certjob.mail.messages.templates import OUR_TEMPLATES
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
def test_only_what_a_mentor_was_never_told_is_mailed(facts: Facts, mentor: UUID, first_day: date) -> None:
    """Another kind, or another last day. `load` takes another first day for another certificate, which it is not."""
    channel = CollectingChannel()

    def mailed(today: date = TODAY) -> list[tuple[bool, date | None]]:
        planned = night(facts.connection, today, dry_run=True).review
        channel.sent.clear()
        night(facts.connection, today, channel=channel)
        assert planned is not None
        assert planned.reminders_queued == len(channel.sent)
        return [("samtale" in message.subject, message.expires_on) for message in channel.sent]

    facts.certificate(mentor, days(25), issued_on=FIRST_DAY)
    assert mailed() == [(False, days(25))]
    facts.certificate(mentor, days(25), issued_on=first_day)
    assert mailed() == []
    facts.connection.execute("DELETE FROM certificates WHERE issued_on = %s", (FIRST_DAY,))
    assert mailed() == []
    assert mailed(days(11)) == [(False, days(25))]  # the next threshold

    facts.certificate(mentor, days(25), kind="samtale")
    assert mailed(days(11)) == [(True, days(25))]
    facts.connection.execute("UPDATE certificates SET expires_on = %s WHERE kind = 'likeperson'", (days(24),))
    assert mailed(days(11)) == [(False, days(24))]
    enter_anew(facts, mentor)  # as it was before the typo, which had a mail of its own
    assert mailed(days(11)) == []
    facts.connection.execute("DELETE FROM certificates")
    facts.certificate(mentor, days(23))
    assert mailed(days(11)) == [(False, days(23))]


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
def test_one_that_is_being_sent_has_no_twin(facts: Facts, mentor: UUID, database_url: str, moment: str) -> None:
    """Its certificate is entered anew and another run reviews meanwhile: one mail, about the new row."""
    enter_anew(facts, mentor)
    review(facts.connection)
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
    queue = kind(facts.connection, today=TODAY, templates=OUR_TEMPLATES)
    assert BlockingStage(facts.connection, queue, channel).run() is None
    night(facts.connection, channel=channel)

    assert [message.repeat for message in channel.sent] == [False]
    assert facts.rows(LOG) == [(30, "sent", entered[0])]
