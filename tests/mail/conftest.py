"""The scene of tests of mail: an organisation, nights so many days from today, one channel."""

import itertools
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from typing import Any
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ChannelDownError, OutcomeUnknownError, RecipientDeferredError, RecipientRefusedError
from certjob.jobs.report import RunReport
from certjob.mail import stage
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.queue import MailQueue
from certjob.mail.stage import MailCounts
from certjob.stopping import StopFlag
from tests.support import nights
from tests.support.channels import reminder_mail, run_stage
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

EVERYBODYS, LATER, NEVER, UNKNOWN = ChannelDownError, RecipientDeferredError, RecipientRefusedError, OutcomeUnknownError
"""Whose fault a failure is, or for how long it is one."""
DOWN, PUT_OFF, REFUSED, CUT = EVERYBODYS("gone"), LATER("450 greylisted"), NEVER("550 no such user"), UNKNOWN("cut")

Messages = list[OutgoingMessage]
OnSend = Callable[[OutgoingMessage], object]


def day(number: int) -> date:
    return TODAY + timedelta(days=number)


class Scene:
    """What happens to the mentors of an organisation, and what their mail becomes."""

    report: RunReport
    """Of the last night."""
    counts: MailCounts
    """Of the last stage that was run alone, and ``sent`` what it sent."""
    sent: Messages

    def __init__(self, facts: Facts, *, home: UUID) -> None:
        self.facts, self.home = facts, home
        self.connection, self.rows = facts.connection, facts.rows
        self.channel = CollectingChannel()

    def execute(self, statement: str, *parameters: object) -> None:
        self.connection.execute(statement.encode(), parameters)

    def coordinator(self, email: str = "berit@example.org", *, of: UUID | None = None, locale: str = "nb") -> None:
        who = {"full_name": "Berit", "email": email, "locale": locale}
        self.facts.insert("coordinators", organisation_id=of or self.home, **who)

    def certified(self, name: str = "Kari", *, until: int, **mentor: Any) -> UUID:
        """A mentor whose certificate ends so many days from today."""
        return self.facts.certified_mentor(self.home, day(until), full_name=name, **mentor)

    def ended(self, *names: str) -> list[UUID]:
        """Mentors whose certificate ended yesterday."""
        return [self.certified(name, until=-1) for name in names]

    def review(self, number: int = 0) -> None:
        """The first half of a night."""
        nights.review(self.connection, day(number))

    def make_due(self) -> None:
        """Let the time until the next try of each mail pass."""
        for table in ("cert_notification_log", "coordinator_digests"):
            nights.make_due(self.facts, table)

    def run_out(self) -> None:
        """Let every lease of a mail run out."""
        for table in ("cert_notification_log", "coordinator_digests"):
            nights.run_out(self.facts, table)

    def night(self, number: int = 0, *, on: Connection | None = None, **options: Any) -> Messages:
        """A whole night: what it sends. Options are ``_listen``'s and those of ``tests.support.nights.night``."""
        options, before = self._listen(**options)
        ways: dict[str, Any] = {"portal": FlakyPortal(), "channel": self.channel}
        self.report = night(on or self.connection, day(number), **ways | options)
        return self.channel.sent[before:]

    def pages(self, number: int = 0, **options: Any) -> Messages:
        """A whole night: the digests that it sends."""
        return [message for message in self.night(number, **options) if message.kind == "digest"]

    def stage(
        self,
        *outcomes: Exception | None,
        number: int = 0,
        queue: MailQueue[Any] | None = None,
        channel: Channel | None = None,
        stop: StopFlag | None = None,
        seconds: float = 60,
        **options: Any,
    ) -> str | None:
        """The mail stage alone, of the reminders or another queue, whose first messages end so: why it ended early."""
        _, before = self._listen(fails=outcomes, **options)
        queue = queue or reminder_mail(self.connection, today=day(number))
        self.counts, channel = MailCounts(), channel or self.channel
        stopped = run_stage(queue, channel, stop=stop, counts=self.counts, seconds=seconds)
        self.sent = self.channel.sent[before:]
        return None if stopped is None else f"{stopped.code}: {stopped.reason}"

    def _listen(
        self,
        *,
        fails: Exception | tuple[Exception | None, ...] = (),
        kind: str = "",
        on_send: OnSend = lambda _message: None,
        **options: Any,
    ) -> tuple[dict[str, Any], int]:
        """Let messages (of a kind) fail, all by one error, or one after the other; return how many were sent before."""
        errors = itertools.repeat(fails) if isinstance(fails, Exception) else iter(fails)

        def take(message: OutgoingMessage) -> None:
            on_send(message)
            if kind in ("", message.kind) and (error := next(errors, None)) is not None:
                raise error

        self.channel.on_send = take
        return options, len(self.channel.sent)


@pytest.fixture
def scene(facts: Facts) -> Scene:
    """An organisation that reminds, and has no portal."""
    return Scene(facts, home=facts.organisation("nhf", portal=None))


@pytest.fixture
def desk(facts: Facts) -> Scene:
    """An organisation with a portal, which reminds nobody, and its coordinator Berit."""
    desk = Scene(facts, home=facts.organisation(thresholds=()))
    desk.coordinator()
    return desk


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries of a channel that is down, without the seconds between them."""
    monkeypatch.setattr(stage, "exponential", lambda **_: lambda _attempt: 0.0)


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection
