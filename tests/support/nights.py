"""Nights and parts of a night in the process of the test, with a portal over real HTTP and collected mails."""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from typing import Any
from unittest import mock
from uuid import UUID, uuid4

from certjob.database import Connection
from certjob.facts.lookup import find_organisation
from certjob.jobs import reconcile, runs
from certjob.jobs.job import Job
from certjob.jobs.job_runs import note_told, recorded
from certjob.jobs.report import RunReport
from certjob.mail.digests import queue_digests
from certjob.mail.message import Channel, OutgoingMessage
from certjob.outbox.retry import RetryPolicy
from certjob.portal import push, stage
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.portal.push import PORTAL_POLICY, PortalEvent
from certjob.portal.sync import PortalSyncService
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.portal_server import PortalServer


class _AnyNumber(dict[str, int]):
    def __missing__(self, slug: str) -> int:
        return 1_000_000


EVERYTHING: Mapping[str, int] = _AnyNumber()
"""Permits every change that a guard would hold."""

Portal = PortalServer | None


class CollectingChannel:
    """A channel that keeps its messages; an error that ``on_send`` raises or returns is the outcome."""

    worst_case_seconds = 1.0

    def __init__(self, *, on_send: Callable[[OutgoingMessage], object] | None = None) -> None:
        self.sent: list[OutgoingMessage] = []
        self.on_send = on_send

    async def send(self, message: OutgoingMessage) -> None:
        if self.on_send is not None:
            # It may run a night, which needs another event loop.
            outcome = await asyncio.to_thread(self.on_send, message)
            if isinstance(outcome, Exception):
                raise outcome
        self.sent.append(message)

    async def probe(self) -> str:
        return "it keeps what it is sent"

    async def close(self) -> None:
        pass


def quick_policy() -> RetryPolicy:
    """Return production's policy of pushes without its waits."""
    return dataclasses.replace(PORTAL_POLICY, backoff=lambda _attempt: 0.0)


WaysOut = dict[str, Any]
"""The portal, the mail channel and the settings of a job."""


def delivery(*, portal: Portal = None, channel: Channel | None = None, **options: Any) -> WaysOut:
    """Return the ways to a portal over real HTTP and to a mail channel."""

    def make_portal() -> HLFDynamicsSyncService:
        assert portal is not None
        return HLFDynamicsSyncService(portal.url, portal.key, deadline_seconds=20)

    given: dict[str, Any] = {"deadline_seconds": 60.0} | options
    return {"make_portal": make_portal if portal is not None else None, "channel": channel, **given}


@contextmanager
def pushes(*, concurrency: int = 1) -> Iterator[None]:
    """Make pushes in this process without waits, and so many at the same time."""
    quick = quick_policy()
    with (
        mock.patch.dict(stage.deliver_pushes.__kwdefaults__, policy=quick, concurrency=concurrency),
        mock.patch.dict(push.push_once.__kwdefaults__, policy=quick),
        mock.patch.object(reconcile, "PORTAL_POLICY", quick),
    ):
        yield


def new_job(connection: Connection, today: date = TODAY, *, ways_out: WaysOut, stop: StopFlag | None = None) -> Job:
    """Return the arguments of a job without a signal and without progress."""
    return Job(connection=connection, today=today, stop=stop or StopFlag(), **ways_out)


def night(
    connection: Connection,
    today: date = TODAY,
    *,
    portal: Portal = None,
    channel: Channel | None = None,
    ways_out: WaysOut | None = None,
    dry_run: bool = False,
    deliver: bool = True,
    **options: Any,
) -> RunReport:
    """Run one night with the options of ``runs.run``, and note that its lines were printed."""
    job = new_job(connection, today, ways_out=ways_out or delivery(portal=portal, channel=channel))
    if deliver or dry_run:
        report = runs.run(job, accept_date=today, dry_run=dry_run, **options)
    else:
        report = run_until_delivery(job, **options)
    if not report.dry_run:
        note_told(connection, report)
    return report


def run_until_delivery(
    job: Job, *, organisation: str | None = None, allow: Mapping[str, int] = Counter(), everybody: bool = False
) -> RunReport:
    """Run a night whose pushes and mails stay queued."""
    report = RunReport(run_id=job.run_id, today=job.today)
    organisation_id = find_organisation(job.connection, organisation) if organisation else None
    with recorded(
        job, report, organisation=organisation, organisation_id=organisation_id, everybody=everybody
    ) as beating:
        runs.review(beating, report, organisation_id=organisation_id, allow=allow)
        queue_digests(job.connection, today=job.today, organisation=organisation)
    return report


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    """Run something in a thread, wait for its end, and raise its error."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        done = thread.submit(work)
        yield
    done.result()


def claim(connection: Connection) -> list[PortalEvent]:
    """Claim the due pushes, as another run does."""
    return PortalSyncService(connection, run_id=uuid4()).claim(100, today=TODAY)


def backlog(facts: Facts, count: int, *, visible: bool = False) -> list[UUID]:
    """Add mentors of a new organisation with a queued push each; return their contacts in the order of delivery."""
    organisation = facts.organisation(f"hlf-{uuid4().hex[:8]}")
    contacts = [uuid4() for _ in range(count)]
    facts.connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, email, dynamics_contact_id, portal_visible, review_on)"
        " SELECT %s, 'B' || n, 'b' || n || '@example.org', contact, %s, '9999-12-31'"
        " FROM unnest(%s::uuid[]) WITH ORDINALITY AS c (contact, n)",
        (organisation, visible, contacts),
    )
    facts.connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, %s FROM mentors"
        " WHERE organisation_id = %s ORDER BY array_position(%s::uuid[], dynamics_contact_id)",
        (visible, organisation, contacts),
    )
    return contacts


def review(connection: Connection, today: date = TODAY) -> None:
    """Review the due mentors, as the first half of a night does."""
    run_id = uuid4()
    guard = MassChangeGuard(connection, today=today, allow=EVERYTHING)
    CertificationManagementService(connection, today=today, run_id=run_id, guard=guard, stop=StopFlag()).apply_due()


def make_due(facts: Facts, table: str = "portal_sync_events") -> None:
    """Make every pending row due."""
    facts.connection.execute(f"UPDATE {table} SET next_attempt_at = now() WHERE status = 'pending'".encode())


def expire_leases(facts: Facts, table: str = "portal_sync_events") -> None:
    """Let every lease expire."""
    facts.connection.execute(
        f"UPDATE {table} SET next_attempt_at = now() - interval '1 second' WHERE claim_token IS NOT NULL".encode()
    )
