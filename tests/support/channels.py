"""Mail channels and the mail stage as a test calls them: without an event loop of its own."""

import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date
from typing import Any

from certjob.database import Connection
from certjob.mail.digests import DigestMail
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.messages import OUR_TEMPLATES
from certjob.mail.queue import MailQueue
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.stage import MailStage
from certjob.outbox.claims import StageStop
from certjob.outbox.loop import DatabaseThread, run_loop
from certjob.stopping import StopFlag
from tests.support.facts import TODAY


class BlockingChannel:
    """One channel and the loop in which its connection lives."""

    def __init__(self, channel: Channel, runner: asyncio.Runner) -> None:
        self._channel = channel
        self._runner = runner

    def send(self, message: OutgoingMessage) -> None:
        self._runner.run(self._channel.send(message))

    def probe(self) -> str:
        return self._runner.run(self._channel.probe())

    def close(self) -> None:
        self._runner.run(self._channel.close())


@contextmanager
def blocking(channel: Channel) -> Iterator[BlockingChannel]:
    """Use a channel, and close it at the end."""
    with asyncio.Runner() as runner, closing(BlockingChannel(channel, runner)) as used:
        yield used


class BlockingStage:
    """The mail stage over one queue, in a loop of its own as ``deliver`` runs it."""

    def __init__(
        self, connection: Connection, queue: MailQueue[Any], channel: Channel, *, stop: StopFlag | None = None
    ) -> None:
        self._connection = connection
        self._channel = channel
        self._stop = stop or StopFlag()
        self._stage: MailStage[Any] = MailStage(queue, channel=channel, stop=self._stop)
        self.counts = self._stage.counts

    def run(self, *, deadline_seconds: float = 60) -> StageStop | None:
        async def send(database: DatabaseThread) -> StageStop | None:
            try:
                return await self._stage.run(database, deadline_seconds=deadline_seconds)
            finally:
                await self._channel.close()

        return run_loop(send, connection=self._connection, stop=self._stop, deadline_seconds=deadline_seconds)


def reminder_mail(connection: Connection, *, today: date = TODAY, **options: Any) -> ReminderMail:
    return ReminderMail(connection, today=today, **{"templates": OUR_TEMPLATES} | options)


def digest_mail(connection: Connection, *, today: date = TODAY) -> DigestMail:
    return DigestMail(connection, today=today, zone=UTC, templates=OUR_TEMPLATES)
