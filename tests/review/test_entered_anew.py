"""Some apps delete all certificates every day and enter them again, with new ids. Reminders are not repeated."""

from datetime import date, timedelta
from uuid import UUID

import pytest

from certjob.errors import OutcomeUnknownError
from certjob.mail.message import OutgoingMessage
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, make_due, review
from tests.support.scene import Scene

LOG = "SELECT threshold_days, status, cert_id FROM cert_notification_log ORDER BY id"


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    """A mentor without a certificate, in an organisation without a portal."""
    return facts.mentor(facts.organisation("nhf", portal=None))


def days(number: int) -> date:
    return TODAY + timedelta(days=number)


def enter_again(facts: Facts, mentor: UUID) -> UUID:
    """Delete all certificates and enter one, which ends in 25 days."""
    facts.connection.execute("DELETE FROM certificates")
    return facts.certificate(mentor, days(25))


def test_each_threshold_is_mailed_once(scene: Scene, mentor: UUID) -> None:
    """Here the thresholds 30, 14, 7, 1 and -1, in nights on their days and on the next days."""
    for number in (0, 1, 11, 12, 18, 19, 24, 25, 26, 27):
        enter_again(scene.facts, mentor)
        scene.night(today=days(number))

    assert [message.threshold_days for message in scene.channel.sent] == [30, 14, 7, 1, -1]


@pytest.mark.parametrize("same_id", [True, False], ids=["same id", "same number"])
def test_mentor_entered_again_is_mailed_once_per_threshold(scene: Scene, *, same_id: bool) -> None:
    """Also without the mails of another organisation's mentor with this number, and without a mail that failed."""
    home, other = (scene.facts.organisation(slug, portal=None) for slug in ("nhf", "lhl"))
    mentor = scene.facts.certified_mentor(home, days(25), member_no="M1")
    for number in (0, 1, 11, 12):
        scene.run_sql("DELETE FROM mentors")
        again = {"id": mentor} if same_id else {}
        scene.facts.insert(
            "mentors", organisation_id=home, member_no="M1", full_name="Kari", email="m1@x.example", **again
        )
        ((mentor,),) = scene.rows("SELECT id FROM mentors")
        scene.facts.certificate(mentor, days(25))
        scene.night(today=days(number))
    stored = scene.rows("SELECT l::text FROM cert_notification_log AS l")
    assert [message.threshold_days for message in scene.channel.sent] == [30, 14]
    assert {mentor} == {row[0] for row in scene.rows("SELECT mentor_id FROM cert_notification_log")}, stored

    scene.facts.certified_mentor(other, days(25), member_no="M1", email="m1@y.example")
    scene.night(today=days(12))

    assert [message.to for message in scene.channel.sent][2:] == ["m1@y.example"]


def test_new_first_day_is_not_mailed(scene: Scene, mentor: UUID) -> None:
    """Neither before nor after the old certificate is deleted."""
    first = scene.facts.certificate(mentor, days(25))
    scene.night()

    scene.facts.certificate(mentor, days(25), issued_on=date(2024, 1, 2))
    scene.night()
    scene.run_sql("DELETE FROM certificates WHERE id = %s", first)
    scene.night()

    assert len(scene.channel.sent) == 1


def test_new_kind_and_new_last_day_are_mailed(scene: Scene, mentor: UUID) -> None:
    """A last day that returns is not mailed again."""
    scene.facts.certificate(mentor, days(25))
    scene.night()

    scene.facts.certificate(mentor, days(25), kind="samtale")
    scene.night()
    scene.run_sql("UPDATE certificates SET expires_on = %s WHERE kind = 'likeperson'", days(24))
    scene.night()
    enter_again(scene.facts, mentor)
    scene.night()

    mailed = [("samtale" in message.subject, message.expires_on) for message in scene.channel.sent]
    assert mailed == [(False, days(25)), (True, days(25)), (False, days(24))]


@pytest.mark.parametrize(
    ("status", "later"), [("pending", "sent"), ("cancelled", "sent"), ("superseded", "sent"), ("failed", "failed")]
)
def test_unsent_reminder_moves_to_the_new_certificate(scene: Scene, mentor: UUID, status: str, later: str) -> None:
    """It is sent once, or stays failed."""
    enter_again(scene.facts, mentor)
    review(scene.connection)
    scene.run_sql("UPDATE cert_notification_log SET status = %s, last_error = 'said no'", status)
    certificate = enter_again(scene.facts, mentor)

    scene.night()

    assert scene.rows(LOG) == [(30, later, certificate)]
    assert len(scene.channel.sent) == (later == "sent")


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


def test_certificate_entered_again_during_the_mail_has_one_mail(scene: Scene, mentor: UUID) -> None:
    """Another run reviews the mentor while the mail server has the mail."""
    enter_again(scene.facts, mentor)
    entered: list[UUID] = []

    def enter_and_review(_message: OutgoingMessage) -> None:
        entered.append(enter_again(Facts(scene.other), mentor))
        review(scene.other)

    scene.night(channel=CollectingChannel(on_send=enter_and_review))
    scene.night()

    assert (len(entered), scene.channel.sent) == (1, [])
    assert scene.rows(LOG) == [(30, "sent", entered[0])]
