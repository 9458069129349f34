"""Mail channels, queues and stages for tests, which have no event loop."""

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, date
from typing import Any, Self

from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.digests import DigestMail
from certjob.mail.message import Channel
from certjob.mail.messages.templates import OUR_TEMPLATES
from certjob.mail.queue import MailQueue
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.stage import MailCounts, MailStage
from certjob.outbox.calls import Calls, NameLookups
from certjob.outbox.claims import StageStop
from certjob.stopping import StopFlag
from tests.support.facts import TODAY
from tests.support.smtp_server import HOST


class Blocking:
    """Runs the asynchronous methods of an object in one event loop, each to its end."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._runner = asyncio.Runner()
        self._runner.get_loop().set_default_executor(NameLookups())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._target, name)
        return lambda *arguments, **named: self._runner.run(_whole(method(*arguments, **named)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()


async def _whole(asked: Any) -> Any:
    return [each async for each in asked] if inspect.isasyncgen(asked) else await asked


def run_stage(
    queue: MailQueue[Any],
    channel: Channel,
    *,
    stop: StopFlag | None = None,
    counts: MailCounts | None = None,
    seconds: float = 60,
) -> StageStop | None:
    """Run the mail stage over one queue, as ``deliver`` does."""
    stop = stop or StopFlag()
    with Calls(stop) as calls:
        stage = MailStage(queue, channel=channel, calls=calls, stop=stop, counts=counts or MailCounts())
        try:
            return stage.run(deadline_seconds=seconds)
        finally:
            calls.make(channel.close())


def smtp_channel(port: int, *, host: str = HOST, **options: Any) -> SmtpChannel:
    """Return a channel; options with the name of a class attribute set this attribute."""
    attributes = {name: options.pop(name) for name in [*options] if hasattr(SmtpChannel, name)}
    channel = SmtpChannel(host, port=port, sender=parse_sender("Hørsel, HLF <post@hlf.example>"), **options)
    for name, value in attributes.items():
        setattr(channel, name, value)
    return channel


def reminder_mail(connection: Connection, *, today: date = TODAY, **options: Any) -> ReminderMail:
    return ReminderMail(connection, today=today, **{"templates": OUR_TEMPLATES} | options)


def digest_mail(connection: Connection, *, today: date = TODAY) -> DigestMail:
    return DigestMail(connection, today=today, zone=UTC, templates=OUR_TEMPLATES)
