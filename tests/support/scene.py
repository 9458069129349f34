"""A database, a portal and a mail channel, with certjob's actions on them, from one push to a night."""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from datetime import date, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID, uuid4

import psycopg

from certjob import database
from certjob.database import Connection
from certjob.jobs import runs
from certjob.jobs.job_runs import note_told
from certjob.jobs.reconcile import reconcile
from certjob.jobs.report import DeliverReport, ReconcileReport, RetryReport, RunReport
from certjob.jobs.resync import Resync, resync
from certjob.mail.message import Channel
from certjob.outbox.calls import Calls, run_alone
from certjob.outbox.claims import Answer
from certjob.portal.push import PortalEvent, Push, push_once
from certjob.portal.stage import deliver_pushes
from certjob.portal.sync import PortalCounts, PortalSyncService, Wish
from certjob.stopping import StopFlag
from tests.support import nights
from tests.support.facts import TODAY, Facts
from tests.support.nights import Portal, delivery, new_job
from tests.support.portal_answers import Behaviour, ok
from tests.support.portal_server import PortalServer

YESTERDAY, NEXT_YEAR = TODAY - timedelta(days=1), TODAY + timedelta(days=365)


class Scene:
    """A database, a portal over real HTTP, a mail channel, and certjob's actions on them."""

    def __init__(self, connection: Connection, open_portal: Callable[[], PortalServer], *, sessions: ExitStack) -> None:
        self.connection = connection
        self._open_portal, self._sessions = open_portal, sessions
        self.channel = nights.CollectingChannel()
        self.facts = Facts(connection)
        self.service = PortalSyncService(connection, run_id=uuid4())
        self.counts = PortalCounts()
        """Of the last stage or push."""
        self.said = ""
        """Why the last stage ended early."""

    @cached_property
    def portal(self) -> PortalServer:
        """A portal over real HTTP, which shows no one at first."""
        return self._open_portal()

    @cached_property
    def other(self) -> Connection:
        """The connection of a second run."""
        return self._sessions.enter_context(database.connect(self.connection.info.dsn))

    @cached_property
    def app(self) -> "psycopg.Connection[tuple[Any, ...]]":
        """The app's session, which keeps its transaction open."""
        return self._sessions.enter_context(contextlib.closing(psycopg.connect(self.connection.info.dsn)))

    @cached_property
    def hlf(self) -> UUID:
        """An organisation with a portal and without reminders."""
        return self.facts.organisation(thresholds=())

    def mentor(self, **named: Any) -> UUID:
        """A mentor of HLF without a certificate."""
        return self.facts.mentor(self.hlf, **named)

    def certified(self, expires_on: date = NEXT_YEAR, **named: Any) -> UUID:
        """A mentor of HLF with one certificate."""
        return self.facts.certified_mentor(self.hlf, expires_on, **named)

    def expired(self, **named: Any) -> UUID:
        """A mentor of HLF with a hide at the next run."""
        return self.certified(YESTERDAY, **named)

    def hidden(self) -> UUID:
        """A mentor of HLF, M1042, with a queued hide."""
        mentor = self.mentor(member_no="M1042")
        self.queue(mentor, visible=False)
        return mentor

    def rows(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self.facts.rows(statement, *parameters)

    def run_sql(self, statement: str, *parameters: object) -> None:
        self.connection.execute(statement.encode(), parameters)

    def backlog(self, count: int, *, visible: bool = False) -> list[UUID]:
        return nights.backlog(self.facts, count, visible=visible)

    def queue(self, mentor_id: UUID, *, visible: bool) -> None:
        """Queue a push, as a review does."""
        with database.transaction(self.connection):
            self.service.queue([Wish(mentor_id=mentor_id, visible=visible)])
            self.connection.execute("UPDATE mentors SET review_on = '9999-12-31' WHERE id = %s", (mentor_id,))

    def claim(self) -> list[PortalEvent]:
        return nights.claim(self.connection)

    def push(self, answer: Behaviour | None = None, *, event: PortalEvent | None = None) -> Answer:
        """Claim the only event, push it (with this answer of the portal), and settle it."""
        if event is None:
            (event,) = self.claim()
        self.portal.default, self.counts = answer or ok(), PortalCounts()
        return self.service.settle(run_alone(self._push(event)), self.counts)

    async def _push(self, event: PortalEvent) -> Push:
        async with delivery(portal=self.portal)["make_portal"]() as client:
            return await push_once(event, portal=client, stopped=asyncio.Event())

    def make_due(self) -> None:
        nights.make_due(self.facts)

    def expire_leases(self) -> None:
        nights.expire_leases(self.facts)

    def night(
        self, portal: Portal = None, *, today: date = TODAY, connection: Connection | None = None, **options: Any
    ) -> RunReport:
        """Run a whole night with the options of ``nights.night``."""
        options = {"portal": portal, "channel": self.channel} | options
        return nights.night(connection or self.connection, today, **options)

    def deliver(self, portal: Portal, *, today: date = TODAY, **options: Any) -> DeliverReport:
        """Run ``deliver``, as cron does between the nights, with the options of ``nights.delivery``."""
        report = runs.deliver(new_job(self.connection, today, ways_out=delivery(portal=portal, **options)))
        note_told(self.connection, report)
        return report

    def retry_all(self, portal: Portal) -> RetryReport:
        """Start ``alerts --retry-all``."""
        return runs.retry_all(new_job(self.connection, ways_out=delivery(portal=portal, channel=self.channel)))

    def resync(
        self, mentor_id: UUID, portal: Portal = None, *, channel: Channel | None = None, **options: Any
    ) -> Resync:
        """Resync a mentor."""
        job = new_job(self.connection, ways_out=delivery(portal=portal, channel=channel))
        return resync(job, mentor_id, **options)

    def reconcile(self, *, stop: StopFlag | None = None, **options: Any) -> ReconcileReport:
        job = new_job(self.connection, ways_out=delivery(portal=self.portal), stop=stop)
        return reconcile(job, accept_date=TODAY, **options)

    def run_stage(
        self,
        *,
        seconds: float = 60,
        service: PortalSyncService | None = None,
        stop: StopFlag | None = None,
        **options: Any,
    ) -> str | None:
        """Run a portal stage; return the code of an early end."""
        stop, counts = stop or StopFlag(), PortalCounts()
        service = service or PortalSyncService(self.connection, run_id=uuid4())
        make_portal = delivery(portal=self.portal)["make_portal"]
        self.counts = counts
        with Calls(stop) as calls:
            given: dict[str, Any] = {"make_portal": make_portal, **options}
            given.setdefault("today", lambda: TODAY)
            stopped = deliver_pushes(service, calls=calls, stop=stop, counts=counts, deadline_seconds=seconds, **given)
        stop.check()
        self.said = str(stopped)
        return None if stopped is None else stopped.code
