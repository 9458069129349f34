"""A certificate that is entered anew has another id; the mentor has had the mail all the same."""

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
    scene: Scene, mentor: UUID
) -> None:
    """28 nights, each with new ids: the messages are those of two certificates, and the plan has counted them."""
    planned = 0

    for number in range(28):
        enter_anew(scene.facts, mentor, "likeperson", "samtale")
        planned += scene.night(today=days(number), dry_run=True).to_document()["reminders"]["queued"]
        scene.night(today=days(number))

    sent = [message.threshold_days or 0 for message in scene.channel.sent]
    assert sorted(sent) == sorted([30, 14, 7, 1, -1] * 2)
    assert planned == len(sent)


def test_only_what_a_mentor_was_never_told_is_mailed(scene: Scene, mentor: UUID) -> None:
    """Another kind, or another last day. `load` takes another first day for another certificate, which it is not."""

    def mailed(today: date = TODAY) -> list[tuple[bool, date | None]]:
        planned = scene.night(today=today, dry_run=True).to_document()["reminders"]["queued"]
        scene.channel.sent.clear()
        scene.night(today=today)
        assert planned == len(scene.channel.sent)
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
    enter_anew(scene.facts, mentor)  # as it was before the typo, which had a mail of its own
    assert mailed(days(11)) == []


@pytest.mark.parametrize("status", ["pending", "failed", "cancelled", "superseded"])
def test_what_was_not_sent_goes_along_too(scene: Scene, mentor: UUID, status: str) -> None:
    """One row about one date: it is sent, or shown as failed, once."""
    enter_anew(scene.facts, mentor)
    review(scene.connection)
    scene.run_sql("UPDATE cert_notification_log SET status = %s, last_error = 'said no'", status)
    (certificate,) = enter_anew(scene.facts, mentor)

    scene.night()

    settled = "failed" if status == "failed" else "sent"
    assert scene.rows(LOG) == [(30, settled, certificate)]
    assert len(scene.channel.sent) == (settled == "sent")


def test_a_repeat_after_an_unknown_outcome_says_so(scene: Scene, mentor: UUID) -> None:
    """It is the same message, with the same Message-ID."""
    enter_anew(scene.facts, mentor)
    lost: list[OutgoingMessage] = []

    def lose(message: OutgoingMessage) -> Exception:
        lost.append(message)
        return OutcomeUnknownError("no answer")

    scene.night(channel=CollectingChannel(on_send=lose))
    enter_anew(scene.facts, mentor)
    make_due(scene.facts, "cert_notification_log")

    scene.night()

    assert [message.repeat for message in scene.channel.sent] == [True]
    assert scene.channel.sent[0].idempotency_key == lost[0].idempotency_key


@pytest.mark.parametrize("moment", ["before the draft", "at the server"])
def test_one_that_is_being_sent_has_no_twin(scene: Scene, mentor: UUID, moment: str) -> None:
    """Its certificate is entered anew and another run reviews meanwhile: one mail, about the new row."""
    enter_anew(scene.facts, mentor)
    review(scene.connection)
    entered: list[UUID] = []

    def enter_and_review(at: str) -> None:
        if at == moment and not entered:
            entered.extend(enter_anew(Facts(scene.other), mentor))
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
