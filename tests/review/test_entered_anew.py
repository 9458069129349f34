"""Some apps delete all certificates every day and enter them again, with new ids. Reminders are not repeated."""

from datetime import date, timedelta
from uuid import UUID

import pytest

from certjob.errors import OutcomeUnknownError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.templates import OUR_TEMPLATES
from certjob.mail.reminder_mail import QueuedReminder, ReminderMail
from certjob.outbox.claims import Lease
from tests.support.channels import run_stage
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, make_due, review
from tests.support.scene import Scene

LOG = "SELECT threshold_days, status, cert_id FROM cert_notification_log ORDER BY id"


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    """A mentor without a certificate, in an organisation without a portal."""
    return facts.mentor(facts.organisation("nhf", portal=None), email="kari@example.org")


def days(number: int) -> date:
    return TODAY + timedelta(days=number)


def enter_again(facts: Facts, mentor: UUID, *kinds: str) -> list[UUID]:
    """Delete all certificates and enter them again."""
    facts.connection.execute("DELETE FROM certificates")
    return [facts.certificate(mentor, days(25), kind=kind) for kind in kinds or ("likeperson",)]


def test_each_threshold_is_mailed_once_in_28_nights(scene: Scene, mentor: UUID) -> None:
    """The dry runs before the nights announce the same number of reminders."""
    planned = 0

    for number in range(28):
        enter_again(scene.facts, mentor, "likeperson", "samtale")
        planned += scene.night(today=days(number), dry_run=True).to_document()["reminders"]["queued"]
        scene.night(today=days(number))

    thresholds = [message.threshold_days or 0 for message in scene.channel.sent]
    assert sorted(thresholds) == sorted([30, 14, 7, 1, -1] * 2)
    assert planned == len(thresholds)


def test_only_a_new_kind_or_last_day_is_mailed(scene: Scene, mentor: UUID) -> None:
    """A new first day is not, and an earlier last day that returns is not, either."""

    def mailed(today: date = TODAY) -> list[tuple[bool, date | None]]:
        scene.channel.sent.clear()
        scene.night(today=today)
        return [("samtale" in message.subject, message.expires_on) for message in scene.channel.sent]

    first = scene.facts.certificate(mentor, days(25))
    assert mailed() == [(False, days(25))]
    scene.facts.certificate(mentor, days(25), issued_on=date(2024, 1, 2))
    assert mailed() == []
    scene.run_sql("DELETE FROM certificates WHERE id = %s", first)
    assert mailed() == []
    assert mailed(days(11)) == [(False, days(25))]  # the next threshold

    scene.facts.certificate(mentor, days(25), kind="samtale")
    assert mailed(days(11)) == [(True, days(25))]
    scene.run_sql("UPDATE certificates SET expires_on = %s WHERE kind = 'likeperson'", days(24))
    assert mailed(days(11)) == [(False, days(24))]
    enter_again(scene.facts, mentor)
    assert mailed(days(11)) == []


@pytest.mark.parametrize("status", ["pending", "failed", "cancelled", "superseded"])
def test_unsent_reminder_moves_to_the_new_certificate(scene: Scene, mentor: UUID, status: str) -> None:
    """It is sent once, or stays failed."""
    enter_again(scene.facts, mentor)
    review(scene.connection)
    scene.run_sql("UPDATE cert_notification_log SET status = %s, last_error = 'said no'", status)
    (certificate,) = enter_again(scene.facts, mentor)

    scene.night()

    settled = "failed" if status == "failed" else "sent"
    assert scene.rows(LOG) == [(30, settled, certificate)]
    assert len(scene.channel.sent) == (settled == "sent")


def test_repeat_after_an_unknown_outcome_keeps_its_key(scene: Scene, mentor: UUID) -> None:
    """Its text says that it may be a repeat."""
    enter_again(scene.facts, mentor)
    lost: list[OutgoingMessage] = []

    def lose(message: OutgoingMessage) -> Exception:
        lost.append(message)
        return OutcomeUnknownError("no answer")

    scene.night(channel=CollectingChannel(on_send=lose))
    enter_again(scene.facts, mentor)
    make_due(scene.facts, "cert_notification_log")

    scene.night()

    (repeat,) = scene.channel.sent
    assert (repeat.repeat, repeat.idempotency_key) == (True, lost[0].idempotency_key)


@pytest.mark.parametrize("moment", ["before the draft", "at the server"])
def test_certificate_entered_again_during_the_mail_has_one_mail(scene: Scene, mentor: UUID, moment: str) -> None:
    """Another run reviews the mentor in the meantime."""
    enter_again(scene.facts, mentor)
    review(scene.connection)
    entered: list[UUID] = []

    def enter_and_review(at: str) -> None:
        if at == moment and not entered:
            entered.extend(enter_again(Facts(scene.other), mentor))
            review(scene.other)

    class Interrupted(ReminderMail):
        def claim(self) -> tuple[QueuedReminder | None, Lease]:
            claimed = super().claim()
            enter_and_review("before the draft")
            return claimed

    scene.channel.on_send = lambda _message: enter_and_review("at the server")
    queue = Interrupted(scene.connection, today=TODAY, templates=OUR_TEMPLATES)
    assert run_stage(queue, scene.channel) is None
    scene.night()

    assert [message.repeat for message in scene.channel.sent] == [False]
    assert scene.rows(LOG) == [(30, "sent", entered[0])]
