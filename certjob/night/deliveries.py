"""The delivery half of a night: the portal first, then the mail; what ends the one early does not touch the other."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Any, Protocol
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError, FailureCode, StoppedBySignalError
from certjob.mail.digests import CoordinatorDigestService, DigestMail
from certjob.mail.message import Channel, domain_of
from certjob.mail.messages import OUR_TEMPLATES, NightTemplates, Templates
from certjob.mail.queue import MailQueue
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.reminders import CertificationReminderService
from certjob.mail.stage import MailStage
from certjob.night.report import RunReport
from certjob.outbox.claims import CRASH, StageStop
from certjob.outbox.loop import DatabaseThread, run_loop
from certjob.outbox.open_work import read_open_work
from certjob.outbox.retry import RetryPolicy
from certjob.portal.drift import PortalDrift
from certjob.portal.push import PortalTarget, portal_policy
from certjob.portal.stage import PortalStage
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.redaction import without_people
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

PORTAL_SHARE = 0.75
"""The portal's part of the time for deliveries: a slow portal leaves some of it to the mail."""

ABOUT_REMINDERS_ALONE = frozenset({"refused", CRASH})
"""How the stage of the reminders can end without a word about the digests: these still go out, and tell of it."""

_LOCKED = "another session keeps a table or its rows to itself; end that session; the rest stays pending"


class Progress(Protocol):
    """Shows how far a phase has come; on a terminal, else nowhere."""

    def phase(self, name: str, *, total: int | None = None) -> Callable[[int], None]:
        """Begin a phase and return what to tell the count to; ``total`` where it is known before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How intents leave the machine."""

    make_target: Callable[[], AbstractAsyncContextManager[PortalTarget]] | None
    """The portal's client; None = CERTJOB_PORTAL_URL is not set."""
    channel: Channel | None = None
    """None = CERTJOB_NOTIFY_URL is not set."""
    mail_from: str | None = None
    open_templates: Callable[[], Templates] = lambda: OUR_TEMPLATES
    """Called once a message is to be written: trying the programme's own takes a while. Raises ConfigurationError."""
    zone: tzinfo = UTC
    """In which times are written."""
    policy: RetryPolicy = field(default_factory=lambda: portal_policy(max_attempts=3))
    concurrency: int = 4
    calls_per_second: float = 0.0
    deadline_seconds: float = 7200.0


class Deliveries:
    """The two stages of one run, with what they share."""

    def __init__(
        self,
        connection: Connection,
        report: RunReport,
        *,
        delivery: Delivery,
        stop: StopFlag,
        progress: Progress,
        organisation_id: UUID | None = None,
    ) -> None:
        """What happens is noted in ``report``; ``organisation_id`` is the only one whose digests are queued."""
        self._connection = connection
        self._report = report
        self._delivery = delivery
        self._stop = stop
        self._progress = progress
        self._organisation_id = organisation_id
        self._templates = NightTemplates(delivery.open_templates)
        self._portal = PortalSyncService(connection, run_id=report.run_id)
        self._reminders = CertificationReminderService(connection, run_id=report.run_id)
        self._digests = CoordinatorDigestService(connection, today=report.today)

    def deliver(self, *, drift: PortalDrift | None = None) -> None:
        """Portal first, then mail; with ``drift`` the portal stage goes on to what it queues.

        Raises StoppedBySignalError after a signal.
        """
        try:
            self._deliver(drift)
        except StoppedBySignalError:
            # What stopped this night may stop the next one, too.
            with contextlib.suppress(psycopg.Error, DatabaseUnavailableError):
                self.queue_digests()
            raise

    def _deliver(self, drift: PortalDrift | None) -> None:
        ends_at = time.monotonic() + self._delivery.deadline_seconds
        self.push(deadline_seconds=self._delivery.deadline_seconds * PORTAL_SHARE, drift=drift)
        channel = self._delivery.channel
        if channel is None:
            self._run("mail", self.queue_digests)
            self._run("mail", self._missing_channel)
            return
        self._send_mail(channel, ends_at=ends_at)

    def queue_digests(self) -> None:
        """Only after a night: the job between the nights sends what is queued."""
        if self._report.command == "run":
            self._digests.queue(self._organisation_id)

    def push(self, *, deadline_seconds: float, drift: PortalDrift | None = None) -> None:
        """Only the portal."""

        async def push(database: DatabaseThread, stopped: asyncio.Event) -> StageStop | None:
            stop = await self._push(database, stopped, deadline_seconds=deadline_seconds, drift=drift)
            self._stop.check()  # a signal cuts a stage short, and is the reason
            return stop

        def in_a_loop() -> StageStop | None:
            return run_loop(push, connection=self._connection, stop=self._stop, deadline_seconds=deadline_seconds)

        self._run("portal", in_a_loop)

    def _run(self, name: str, stage: Callable[[], StageStop | None]) -> StageStop | None:
        """Run a stage and note why it ended early, if it did."""
        stopped: StageStop | None
        try:
            stopped = stage()
        except StoppedBySignalError:
            raise
        except Exception as error:
            if self._connection.closed:
                raise
            if isinstance(error, database.CONTENTION):
                return self._note(StageStop(stage=name, code="locked", reason=_LOCKED))
            # Something in one stage that nobody foresaw: the other one still runs, and the run says failed.
            logger.debug("the %s stage crashed", name, exc_info=True, extra={"event": "stage_crashed"})
            self._report.crashed = True
            # Without the DETAIL of a database error, which holds names and addresses.
            text = (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)
            reason = f"unforeseen {type(error).__name__}: {without_people(text)}"
            stopped = StageStop(stage=name, code=CRASH, reason=reason)
            if name == "portal":
                with contextlib.suppress(psycopg.Error):  # the database may be what is broken
                    self._portal.record_stage_end(stopped.reason, code=FailureCode.CRASH)
        return self._note(stopped)

    def _note(self, stopped: StageStop | None) -> StageStop | None:
        if stopped is not None:
            self._report.stopped.append(stopped)
        return stopped

    async def _push(
        self, database: DatabaseThread, stopped: asyncio.Event, *, deadline_seconds: float, drift: PortalDrift | None
    ) -> StageStop | None:
        delivery, report = self._delivery, self._report
        report.portal = PortalCounts()
        if delivery.make_target is None:
            return await database.run(lambda: self._missing_portal(drift))
        total = await database.run(drift.begin) if drift is not None else None
        stage = PortalStage(
            self._portal,
            database=database,
            stopped=stopped,
            make_target=delivery.make_target,
            policy=delivery.policy,
            concurrency=delivery.concurrency,
            calls_per_second=delivery.calls_per_second,
            on_progress=await database.run(lambda: self._progress.phase("Pushing to the portal", total=total)),
            queue_more=drift.queue_more if drift is not None else None,
        )
        report.portal = stage.counts
        stage_stop = await stage.run(deadline_seconds=deadline_seconds)
        return stage_stop if drift is None else drift.end(stage_stop)

    def _missing_portal(self, drift: PortalDrift | None) -> StageStop | None:
        open_work = read_open_work(self._connection)
        number = open_work["portal_hides"].open + open_work["portal_shows"].open
        if not number and drift is None:
            return None
        missing = "CERTJOB_PORTAL_URL is not set"
        self._portal.record_stage_end(missing, code=FailureCode.NO_URL)
        rest = "1 push stays pending" if number == 1 else f"{number:,} pushes stay pending"
        reason = f"{missing}; {rest if number else 'nothing was pushed'}"
        return StageStop(stage="portal", code="no_url", reason=reason)

    def _send_mail(self, channel: Channel, *, ends_at: float) -> None:
        """Reminders, then digests: what a digest tells of is then as new as can be."""
        stopped = self._run("mail", lambda: self._send_reminders(channel, ends_at=ends_at))
        self._run("mail", self.queue_digests)
        if stopped is None or stopped.code in ABOUT_REMINDERS_ALONE:
            self._run("mail", lambda: self._send_digests(channel, ends_at=ends_at))
        self._run("mail", self._templates.problem)

    def _send_reminders(self, channel: Channel, *, ends_at: float) -> StageStop | None:
        queue = ReminderMail(
            self._connection,
            today=self._report.today,
            domain=domain_of(self._delivery.mail_from),
            templates=self._templates,
        )
        stage = self._mail_stage(queue, channel, phase="Sending reminders")
        self._report.reminders = stage.counts
        return self._in_loop(stage, channel, ends_at=ends_at)

    def _send_digests(self, channel: Channel, *, ends_at: float) -> StageStop | None:
        queue = DigestMail(
            self._connection,
            today=self._report.today,
            domain=domain_of(self._delivery.mail_from),
            zone=self._delivery.zone,
            templates=self._templates,
        )
        stage = self._mail_stage(queue, channel, phase="Sending digests")
        self._report.digests = stage.counts
        return self._in_loop(stage, channel, ends_at=ends_at)

    def _mail_stage(self, queue: MailQueue[Any], channel: Channel, *, phase: str) -> MailStage[Any]:
        return MailStage(queue, channel=channel, stop=self._stop, on_progress=self._progress.phase(phase))

    def _in_loop(self, stage: MailStage[Any], channel: Channel, *, ends_at: float) -> StageStop | None:
        seconds = max(ends_at - time.monotonic(), 0)

        async def send(database: DatabaseThread, stopped: asyncio.Event) -> StageStop | None:
            try:
                return await stage.run(database, stopped, deadline_seconds=seconds)
            finally:
                await channel.close()

        return run_loop(send, connection=self._connection, stop=self._stop, deadline_seconds=seconds)

    def _missing_channel(self) -> StageStop | None:
        open_work = read_open_work(self._connection)
        pending = [
            _counted(open_work["reminders"].pending, "reminder", "reminders"),
            _counted(open_work["digests"].pending, "digest", "digests"),
        ]
        what = " and ".join(text for text in pending if text)
        if not what:
            return None
        stays = "stays" if what.startswith("1 ") and " and " not in what else "stay"
        return StageStop(stage="mail", code="no_url", reason=f"CERTJOB_NOTIFY_URL is not set; {what} {stays} pending")


def _counted(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}" if number else ""
