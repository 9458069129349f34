"""Resync of one mentor, now: review, then push the visibility whatever the retry time says."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
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
    PortalStageError,
    TransientPortalError,
    UnknownMentorError,
)
from certjob.mail.reminders import CertificationReminderService
from certjob.night.deliveries import Delivery, read_backlog
from certjob.night.job_runs import recorded
from certjob.night.report import RunReport
from certjob.outbox.claims import Answer, Lease, StageStop
from certjob.outbox.retry import RetryPolicy
from certjob.portal.push import (
    CALL_DEADLINE_SECONDS,
    PortalEvent,
    PortalTarget,
    Push,
    asked_to_wait,
    push_event,
    refusal_code,
)
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard, refuse_earlier_date
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
    allow_earlier_date: bool,
    delivery: Delivery,
    stop: StopFlag,
    times: ResyncTimes | None = None,
    run_id: UUID | None = None,
) -> Resync:
    """Review one mentor and push the wanted visibility even if nothing changed. Reminders are queued, not sent.

    The result's ``error`` says when the push did not succeed: DynamicsSyncException, or MentorBusyError while another
    run pushes. Raises MentorBusyError when the mentor's lock cannot be had.
    """
    times = times or ResyncTimes()
    if not allow_earlier_date:
        refuse_earlier_date(connection, today)
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
        read_backlog(connection, report)
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
    """Push the queued value; wait for another run's call in flight instead of racing it."""
    if delivery.make_target is None:
        reason = "CERTJOB_PORTAL_URL is not set; the push stays pending"
        portal.record_stage_end(reason, code=FailureCode.NO_URL)
        report.stopped.append(StageStop(stage="portal", code="no_url", reason=reason))
        return
    give_up_at = time.monotonic() + times.flight
    while True:
        stop.check()
        event, lease = portal.claim_mentor(mentor_id)
        if event is not None and not event.has_portal:  # lost since the review; the next one withdraws the event
            portal.release([event])
            return
        if event is not None and lease.fits(delivery.policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):
            push = _push_once(event, lease, delivery.make_target, policy=delivery.policy, stop=stop)
            _settle(push, portal=portal, report=report, stop=stop)
        elif event is not None:
            portal.release([event])
            event = None
        row = portal.read_event(queued.id)
        if row is None or row[0] == "withdrawn":  # None: delivered by another run, then deleted with the mentor
            return
        status, version = row
        if status == "delivered" and version >= queued.version:
            return
        if time.monotonic() > give_up_at:
            message = "a push by another run is in flight and will carry the new value"
            report.stopped.append(StageStop(stage="portal", code="in_flight", reason=message))
            portal.record_stage_end(message, code=FailureCode.IN_FLIGHT, mentor_id=mentor_id)  # that run may be gone
            raise MentorBusyError(message)
        if event is None:
            stop.sleep(_POLL_SECONDS)


def _settle(push: Push, *, portal: PortalSyncService, report: RunReport, stop: StopFlag) -> None:
    """Write the outcome; raise what went wrong."""
    counts = report.portal or PortalCounts()
    answers = portal.settle([push], counts)
    portal.record_late(stop, counts)
    error = push.error
    if error is None or not push.begun or answers[push.event.id] is Answer.LOST:  # another run has taken it over
        return
    if isinstance(error.cause, PortalStageError) or asked_to_wait(error) is not None:
        code = refusal_code(error.cause) if isinstance(error.cause, PortalStageError) else "retry_after"
        report.stopped.append(StageStop(stage="portal", code=code, reason=str(error.cause)))
        portal.record_stage_end(str(error.cause), code=error.cause.code, correlation_id=error.cause.correlation_id)
    raise error


def _push_once(
    event: PortalEvent,
    lease: Lease,
    make_target: Callable[[], AbstractContextManager[PortalTarget]],
    *,
    policy: RetryPolicy,
    stop: StopFlag,
) -> Push:
    with make_target() as target:
        try:
            push_event(
                event,
                target,
                policy=policy,
                stop=stop,
                may_repeat=lambda: lease.fits(CALL_DEADLINE_SECONDS),  # the machine may have been asleep
            )
        except DynamicsSyncException as error:
            cut_short = stop.is_set() and isinstance(error.cause, TransientPortalError)
            return Push(event=event, error=error, begun=not cut_short)
    return Push(event=event)
