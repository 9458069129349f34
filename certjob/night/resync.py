"""Resync of one mentor, now: review, then push the visibility whatever the retry time says."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import date
from uuid import UUID, uuid4

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import (
    DynamicsSyncException,
    FailureCode,
    MentorBusyError,
    UnknownMentorError,
)
from certjob.mail.reminders import CertificationReminderService
from certjob.night.days import refuse_wrong_day
from certjob.night.deliveries import Delivery
from certjob.night.job_runs import recorded
from certjob.night.report import RunReport
from certjob.outbox.claims import Answer, Lease, StageStop
from certjob.outbox.loop import DatabaseThread, run_loop
from certjob.outbox.retry import RetryPolicy, wait
from certjob.portal.push import PortalEvent, PortalTarget, Push
from certjob.portal.stage import PortalStage
from certjob.portal.sync import LEASE_SECONDS, PortalCounts, PortalSyncService
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag

LOCK_WAIT_SECONDS = 10.0
FLIGHT_WAIT_SECONDS = 60.0
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class MentorState:
    """One mentor as a person wants to see it."""

    member_no: str
    has_portal: bool
    wanted: bool | None
    pauses: list[str]
    certificates: list[str]
    acknowledged: bool | None
    """What the portal confirmed last; None: nothing yet."""
    open_push: str | None
    """The status of an unfinished push."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """The result of a resync, failed or not."""

    report: RunReport
    before: MentorState
    after: MentorState
    error: DynamicsSyncException | MentorBusyError | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResyncTimes:
    """How long a resync waits for others, in seconds."""

    lock: float = LOCK_WAIT_SECONDS
    flight: float = FLIGHT_WAIT_SECONDS


def resync(
    connection: Connection,
    mentor_id: UUID,
    *,
    today: date,
    delivery: Delivery,
    stop: StopFlag,
    ignore_database_clock: bool = False,
    times: ResyncTimes | None = None,
    run_id: UUID | None = None,
) -> Resync:
    """Review one mentor and push the wanted visibility even if nothing changed. Reminders are queued, not sent.

    The result's ``error`` says when the push did not succeed: DynamicsSyncException, or MentorBusyError while another
    run pushes. Raises MentorBusyError when the mentor's lock cannot be had.
    """
    times = times or ResyncTimes()
    refuse_wrong_day(connection, today, zone=delivery.zone, ignore_database_clock=ignore_database_clock)
    report = RunReport(command="resync", run_id=run_id or uuid4(), today=today)
    before = describe(connection, mentor_id)
    error: DynamicsSyncException | MentorBusyError | None = None
    with recorded(connection, report):
        portal = PortalSyncService(connection, run_id=report.run_id)
        event = _review_and_queue(connection, mentor_id, report=report, portal=portal, stop=stop, wait=times.lock)
        report.portal = PortalCounts()
        if event is not None:
            try:
                _push(
                    connection,
                    mentor_id,
                    event,
                    portal=portal,
                    report=report,
                    delivery=delivery,
                    stop=stop,
                    times=times,
                )
            except (DynamicsSyncException, MentorBusyError) as caught:
                error = caught
    return Resync(report=report, before=before, after=describe(connection, mentor_id), error=error)


def describe(connection: Connection, mentor_id: UUID) -> MentorState:
    """Read one mentor's state."""
    rows = database.fetch(connection, "describe_mentor", {"id": mentor_id}, into=MentorState)
    if not rows:
        message = f"mentor {mentor_id} does not exist any more"
        raise UnknownMentorError(message)
    return rows[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _QueuedEvent:
    id: int
    version: int


def _review_and_queue(
    connection: Connection,
    mentor_id: UUID,
    *,
    report: RunReport,
    portal: PortalSyncService,
    stop: StopFlag,
    wait: float,
) -> _QueuedEvent | None:
    """Review, and in the same transaction raise or insert the mentor's event; None without a portal."""
    reminders = CertificationReminderService(connection, run_id=report.run_id)
    service = CertificationManagementService(
        connection,
        today=report.today,
        run_id=report.run_id,
        guard=MassChangeGuard(connection, today=report.today, reminders=reminders, allow_mass_change=True),
        reminders=reminders,
        portal=portal,
        stop=stop,
    )
    report.review = service.counts
    queued: list[_QueuedEvent] = []

    def queue(decision: Decision) -> None:
        queued.clear()
        if decision.organisation.has_portal:
            event_id, version = portal.force(decision.mentor_id, visible=decision.visible)
            queued.append(_QueuedEvent(id=event_id, version=version))

    give_up_at = time.monotonic() + wait
    while not service.review_one(mentor_id, then=queue):
        if time.monotonic() > give_up_at:
            message = (
                f"mentor {mentor_id} is locked by another session (waited {wait:g} s); nothing was changed, try again"
            )
            raise MentorBusyError(message)
        stop.sleep(_POLL_SECONDS)
    return queued[0] if queued else None


def _push(
    connection: Connection,
    mentor_id: UUID,
    queued: _QueuedEvent,
    *,
    portal: PortalSyncService,
    report: RunReport,
    delivery: Delivery,
    stop: StopFlag,
    times: ResyncTimes,
) -> None:
    """Push the queued value; wait for another run's call in flight instead of racing it.

    Raises DynamicsSyncException when the push did not succeed, MentorBusyError when another run has it in flight.
    """
    if delivery.make_target is None:
        reason = "CERTJOB_PORTAL_URL is not set; the push stays pending"
        portal.record_stage_end(reason, code=FailureCode.NO_URL)
        report.stopped.append(StageStop(stage="portal", code="no_url", reason=reason))
        return
    push = _MentorPush(
        mentor_id,
        queued,
        portal=portal,
        report=report,
        make_target=delivery.make_target,
        policy=delivery.policy,
    )

    async def push_in_time(database: DatabaseThread, stopped: asyncio.Event) -> bool:
        give_up_at = time.monotonic() + times.flight
        while not await push.is_done(database, stopped):
            if time.monotonic() > give_up_at:
                return False
            await wait(_POLL_SECONDS, stopped)
        return True

    is_done = run_loop(push_in_time, connection=connection, stop=stop, deadline_seconds=times.flight + LEASE_SECONDS)
    stop.check()
    if not is_done:
        message = "a push by another run is in flight and will carry the new value"
        report.stopped.append(StageStop(stage="portal", code="in_flight", reason=message))
        portal.record_stage_end(message, code=FailureCode.IN_FLIGHT, mentor_id=mentor_id)  # that run may be gone
        raise MentorBusyError(message)


class _MentorPush:
    """The portal stage, on one mentor's event."""

    def __init__(
        self,
        mentor_id: UUID,
        queued: _QueuedEvent,
        *,
        portal: PortalSyncService,
        report: RunReport,
        make_target: Callable[[], AbstractAsyncContextManager[PortalTarget]],
        policy: RetryPolicy,
    ) -> None:
        self._mentor_id = mentor_id
        self._queued = queued
        self._portal = portal
        self._report = report
        self._make_target = make_target
        self._policy = policy
        self._is_claimed = False

    async def is_done(self, database: DatabaseThread, stopped: asyncio.Event) -> bool:
        """Push what can be claimed; whether the queued value has arrived, by this run or another, or is not wanted.

        Raises DynamicsSyncException when the push did not succeed.
        """
        self._is_claimed = False
        ended: list[tuple[Push, Answer]] = []
        stage = PortalStage(
            self._portal,
            database=database,
            stopped=stopped,
            make_target=self._make_target,
            policy=self._policy,
            claim=self._claim_once,
            longest_pause_seconds=0.0,
            on_settled=lambda push, answer: ended.append((push, answer)),
            counts=self._report.portal,
        )
        stage_stop = await stage.run(deadline_seconds=LEASE_SECONDS)
        if stage_stop is not None:
            self._report.stopped.append(stage_stop)
        if stopped.is_set() or any(_is_what_was_asked(*each) for each in ended):
            return True
        event = await database.run(lambda: self._portal.read_event(self._queued.id))
        if event is None:  # delivered by another run, then deleted with the mentor
            return True
        status, version = event
        return status == "withdrawn" or (status == "delivered" and version >= self._queued.version)

    def _claim_once(self, _limit: int) -> list[tuple[PortalEvent, Lease]]:
        claimed = self._portal.claim_mentor(self._mentor_id) if not self._is_claimed else []
        self._is_claimed = self._is_claimed or bool(claimed)
        return claimed


def _is_what_was_asked(push: Push, answer: Answer) -> bool:
    """Whether this push is what the resync was asked for; raise what went wrong with it."""
    if not push.event.has_portal:  # lost since the review; the next one withdraws the event
        return True
    if not push.begun or answer is Answer.LOST:  # another run has taken it over
        return False
    if push.error is not None:
        raise push.error
    return answer is not Answer.RAISED
