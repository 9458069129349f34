"""``certjob resync``: review one mentor and push the visibility now, before any retry time."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import DynamicsSyncException, MentorBusyError, StageEnd, UnknownMentorError
from certjob.jobs.deliveries import Deliveries, Job
from certjob.jobs.job_runs import recorded
from certjob.jobs.report import RunReport
from certjob.outbox.claims import Answer, Lease, StageStop
from certjob.portal.push import PortalEvent, Push
from certjob.portal.sync import LEASE_SECONDS, PortalCounts, PortalSyncService
from certjob.review.certification import CertificationManagementService
from certjob.review.days import refuse_wrong_day
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag

_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class MentorState:
    """The state of one mentor, for the page."""

    member_no: str
    has_portal: bool
    desired: bool | None
    """The last queued visibility, or None."""
    pauses: list[str]
    certificates: list[str]
    acknowledged: bool | None
    """The last visibility that the portal confirmed, or None."""
    open_push: str | None
    """The status of the open push, or None."""
    next_try_at: datetime | None
    """When a pending push is due, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """The result of a resync."""

    report: RunReport
    before: MentorState
    after: MentorState
    error: DynamicsSyncException | MentorBusyError | None


class _OneMentor(PortalSyncService):
    """Claims only the open push of one mentor, even before its retry time, until it was tried."""

    def __init__(self, connection: Connection, mentor_id: UUID, *, run_id: UUID) -> None:
        super().__init__(connection, run_id=run_id)
        self._mentor_id = mentor_id
        self.is_pushed = False
        self.error: DynamicsSyncException | None = None

    def claim(self, limit: int, *, today: date | None) -> list[tuple[PortalEvent, Lease]]:
        return [] if self.is_pushed else self.claim_mentor(self._mentor_id, today=today)

    def settle(self, push: Push, counts: PortalCounts) -> Answer:
        answer = super().settle(push, counts)
        if push.is_tried and answer is not Answer.LOST:
            self.error = push.error
            self.is_pushed = push.error is not None or answer is not Answer.RAISED
        return answer


def resync(
    job: Job,
    mentor_id: UUID,
    *,
    accept_date: date | None = None,
    lock_wait_seconds: float = 10.0,
    flight_wait_seconds: float = 60.0,
) -> Resync:
    """Review one mentor and push the desired visibility, changed or not. Reminders are queued, not sent.

    ``error`` in the result is DynamicsSyncException if the push failed, and MentorBusyError if another run kept it
    claimed. Raises MentorBusyError if another session kept the mentor locked, the errors of ``refuse_wrong_day``, and
    StoppedBySignalError after a signal.
    """
    connection, today, stop, zone = job.connection, job.today, job.stop, job.delivery.zone
    refuse_wrong_day(connection, today, zone=zone, accept_date=accept_date)
    report = RunReport(command="resync", run_id=job.run_id, today=today)
    before = describe(connection, mentor_id)
    error: DynamicsSyncException | MentorBusyError | None = None
    portal = _OneMentor(connection, mentor_id, run_id=job.run_id)
    guard = MassChangeGuard(connection, today=today, allow=defaultdict(lambda: 1))  # a person asked for this mentor
    service = CertificationManagementService(connection, today=today, run_id=job.run_id, guard=guard, stop=stop)
    queued = 0

    def queue(decision: Decision) -> None:
        nonlocal queued
        has_value = decision.organisation.has_portal and not decision.nothing_to_hide
        queued = portal.queue([(mentor_id, decision.visible)] if has_value else [])

    with recorded(job, report) as beating:
        report.review = service.counts
        if not _comes_true(lambda: service.review_one(mentor_id, then=queue), stop=stop, seconds=lock_wait_seconds):
            message = f"mentor {mentor_id} is locked by another session (waited {lock_wait_seconds:g} s)"
            raise MentorBusyError(message, next_step="try again; the mentor was not changed")
        at_once = replace(job.delivery, longest_pause_seconds=0.0, deadline_seconds=LEASE_SECONDS)
        deliveries = Deliveries(replace(beating, delivery=at_once), report, portal=portal)

        def is_finished() -> bool:
            """Push; return whether this run has tried, the stage has ended early, or no push is open."""
            deliveries.push()
            state = describe(connection, mentor_id)
            return portal.is_pushed or bool(report.stopped) or not (state.has_portal and state.open_push)

        if queued and not _comes_true(is_finished, stop=stop, seconds=flight_wait_seconds):
            error = MentorBusyError(
                f"another run has kept this push claimed for {flight_wait_seconds:g} s",
                next_step="the new value is queued: that run pushes it next, or, if that run has died, the first "
                f"`certjob run` or `certjob deliver` after {LEASE_SECONDS / 60:.0f} minutes",
            )
            report.stopped.append(StageStop(stage="portal", code=StageEnd.IN_FLIGHT, reason=error.message))
            portal.record_stage_end(error.message, end=StageEnd.IN_FLIGHT, mentor_id=mentor_id)
        elif portal.error is not None:
            error = portal.error
    after = describe(connection, mentor_id)
    if error is not None and error.next_step is None and after.next_try_at is not None:
        error.next_step = f"it is tried again at {after.next_try_at.astimezone(zone):%Y-%m-%d %H:%M %Z}"
    return Resync(report=report, before=before, after=after, error=error)


def describe(connection: Connection, mentor_id: UUID) -> MentorState:
    """Return one mentor's state. Raises UnknownMentorError if someone has deleted the mentor."""
    rows = database.fetch(connection, "describe_mentor", {"id": mentor_id}, into=MentorState)
    if not rows:
        message = f"mentor {mentor_id} has been deleted"
        raise UnknownMentorError(message)
    return rows[0]


def _comes_true(happens: Callable[[], bool], *, stop: StopFlag, seconds: float) -> bool:
    """Ask repeatedly for at most this time; return whether the answer was True."""
    give_up_at = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > give_up_at:
            return False
        stop.sleep(_POLL_SECONDS)
    return True
