"""Nights with mails: an organisation, days counted from ``TODAY``, and a channel with the outcomes of a test."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import (
    Cause,
    ChannelDownError,
    MailRejectedError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRejectedError,
)
from certjob.jobs.report import RunReport
from certjob.mail import stage
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.stage import MailCounts, send_mails
from certjob.mail.steps import Mails
from certjob.outbox.calls import Calls
from certjob.stopping import StopFlag
from tests.mail.channels import reminder_mail
from tests.support import nights as support
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, night
from tests.support.portal_server import PortalServer

DOWN = ChannelDownError("gone")
DEFERRED = RecipientDeferredError("450 greylisted")
REJECTED = RecipientRejectedError("550 no such user", code=Cause.WRONG_ADDRESS)
REFUSED = MailRejectedError("550 5.7.1 not you", may_be_address=False)
UNCLEAR = MailRejectedError("550 no", may_be_address=True)
CUT = OutcomeUnknownError("cut")


def reject_reminders(message: OutgoingMessage) -> Exception | None:
    return REJECTED if message.kind == "reminder" else None


Messages = list[OutgoingMessage]


def day(number: int) -> date:
    return TODAY + timedelta(days=number)


class Mailing:
    """Mentors of one organisation, and the mails that they and the coordinators get."""

    report: RunReport
    """Of the last night."""
    counts: MailCounts
    """Of the last mail stage that ran alone. ``sent`` has its messages."""
    sent: Messages

    def __init__(self, facts: Facts, *, home: UUID, portal: PortalServer | None = None) -> None:
        self.facts, self.home, self.portal = facts, home, portal
        self.connection, self.rows = facts.connection, facts.rows
        self.channel = CollectingChannel()

    def execute(self, statement: str, *parameters: object) -> None:
        self.connection.execute(statement.encode(), parameters)

    def coordinator(self, email: str = "berit@example.org", *, of: UUID | None = None, locale: str = "nb") -> None:
        who = {"full_name": "Berit", "email": email, "locale": locale}
        self.facts.insert("coordinators", organisation_id=of or self.home, **who)

    def certified(self, name: str = "Kari", *, until: int, **mentor: Any) -> UUID:
        """Add a mentor with a certificate that ends in so many days."""
        return self.facts.certified_mentor(self.home, day(until), full_name=name, **mentor)

    def ended(self, *names: str) -> list[UUID]:
        """Add mentors with a certificate that ended yesterday."""
        return [self.certified(name, until=-1) for name in names]

    def review(self, number: int = 0) -> None:
        support.review(self.connection, day(number))

    def make_due(self) -> None:
        """End the delay of every retry."""
        for table in ("cert_notification_log", "coordinator_digests"):
            support.make_due(self.facts, table)

    def expire_leases(self) -> None:
        """End every lease."""
        for table in ("cert_notification_log", "coordinator_digests"):
            support.expire_leases(self.facts, table)

    def mails(
        self, number: int = 0, *, on_send: Callable[[OutgoingMessage], object] | None = None, **options: Any
    ) -> Messages:
        """Run a night and return its mails. An error that ``on_send`` returns is the outcome of a message."""
        before, self.channel.on_send = len(self.channel.sent), on_send
        ways: dict[str, Any] = {"portal": self.portal, "channel": self.channel}
        self.report = night(self.connection, day(number), **ways | options)
        return self.channel.sent[before:]

    def digests(self, number: int = 0, **options: Any) -> Messages:
        """Run a night and return its digests."""
        return [message for message in self.mails(number, **options) if message.kind == "digest"]

    def stage(
        self,
        *outcomes: Exception | None,
        number: int = 0,
        mails: Mails[Any] | None = None,
        channel: Channel | None = None,
        on_send: Callable[[OutgoingMessage], object] | None = None,
        stop: StopFlag | None = None,
        seconds: float = 60,
    ) -> str | None:
        """Run the mail stage alone, with these outcomes of the first messages, and return why it stopped early."""
        before, errors = len(self.channel.sent), iter(outcomes)
        self.channel.on_send = on_send or (lambda _message: next(errors, None))
        mails, channel = mails or reminder_mail(self.connection, today=day(number)), channel or self.channel
        self.counts, stop = MailCounts(), stop or StopFlag()
        with Calls(stop) as calls:
            try:
                stopped = send_mails(
                    mails, channel=channel, calls=calls, stop=stop, counts=self.counts, deadline_seconds=seconds
                )
            finally:
                calls.make(channel.close())
        self.sent = self.channel.sent[before:]
        return None if stopped is None else f"{stopped.code}: {stopped.reason}"


@pytest.fixture
def mailing(facts: Facts) -> Mailing:
    """An organisation with reminders and without a portal."""
    return Mailing(facts, home=facts.organisation("nhf", portal=None))


@pytest.fixture
def desk(facts: Facts, portal: PortalServer) -> Mailing:
    """An organisation with a portal and without reminders, and its coordinator Berit."""
    desk = Mailing(facts, home=facts.organisation(thresholds=()), portal=portal)
    desk.coordinator()
    return desk


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the seconds between the attempts on a channel that is down."""
    monkeypatch.setattr(stage, "CHANNEL_POLICY", replace(stage.CHANNEL_POLICY, backoff=lambda _attempt: 0.0))


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection
