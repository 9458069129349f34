"""A reminder that a recipient's server puts off again and again is no secret: a full mailbox is somebody's to know."""

from datetime import timedelta
from uuid import UUID

import pytest

from certjob.database import Connection
from certjob.errors import RecipientDeferredError
from certjob.mail.message import OutgoingMessage
from certjob.review.attention import Kind, read_attention
from certjob.views.alerts import read_alerts
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due
from tests.support.nights import CollectingChannel, night

FULL = "the mail server put the recipient off (452 4.2.2 mailbox full)"


@pytest.fixture
def put_off(connection: Connection, facts: Facts) -> UUID:
    """A mentor whose mailbox is full, with a coordinator; the reminder has been tried twice, an hour ago."""
    organisation = facts.organisation("nhf", portal=None)
    connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'berit@example.org')", (organisation,)
    )
    mentor = facts.certified_mentor(organisation, TODAY + timedelta(days=40), full_name="Kari")
    for _ in range(2):
        night(connection, channel=full_mailbox())
        make_due(facts, "cert_notification_log")
    return mentor


def full_mailbox() -> CollectingChannel:
    def refuse(message: OutgoingMessage) -> None:
        if message.kind == "reminder":
            raise RecipientDeferredError(FULL)

    return CollectingChannel(on_send=refuse)


def a_day_later(connection: Connection) -> None:
    connection.execute("UPDATE cert_notification_log SET queued_at = queued_at - interval '25 hours'")


def shown(connection: Connection) -> list[str | None]:
    """The errors that the alerts show; status and metrics count as many."""
    alerts = read_alerts(connection, today=TODAY)
    counted = read_attention(connection, today=TODAY).counts
    assert counted[Kind.FAILED_REMINDERS].number == len(alerts.reminders)
    assert counted[Kind.WAITING_REMINDERS].number == sum(each.number for each in alerts.waiting_mail)
    return [reminder.error for reminder in alerts.reminders]


def test_a_short_while_is_nobodys_business(connection: Connection, put_off: UUID) -> None:
    """Servers greylist: that passes."""
    night(connection, channel=(channel := full_mailbox()))

    assert shown(connection) == []
    assert channel.sent == []


def test_after_a_day_people_hear_of_it_once(connection: Connection, facts: Facts, put_off: UUID) -> None:
    """In the alerts as long as it lasts, in one digest; it is tried on, and gone once it is sent."""
    a_day_later(connection)
    pages = []
    for number in range(3):
        night(connection, TODAY + timedelta(days=number), channel=(channel := full_mailbox()))
        make_due(facts, "cert_notification_log")
        pages += channel.sent

    assert shown(connection) == [FULL]
    (page,) = pages
    assert "* Kari (M1001), gjelder sertifikatet" in page.text
    assert "Kanskje er postkassen full. Vi prøver igjen automatisk (452 4.2.2 mailbox full)." in page.text

    night(connection, TODAY + timedelta(days=3), channel=(channel := CollectingChannel()))

    assert [message.kind for message in channel.sent] == ["reminder"]
    assert shown(connection) == []
