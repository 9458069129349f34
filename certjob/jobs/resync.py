"""Review one mentor and push the visibility now, before any retry time: ``certjob resync``, and after a pause."""

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import CertjobError, DynamicsSyncException, MentorBusyError, StageEnd, UnknownMentorError
from certjob.jobs.job import Job
from certjob.jobs.job_runs import recorded
from certjob.jobs.report import ResyncReport
from certjob.jobs.runs import missing_portal, stage
from certjob.mail.reminders import reopen_reminders
from certjob.outbox.calls import Calls
from certjob.outbox.claims import Answer, StageStop
from certjob.portal.push import PortalEvent, push_once
from certjob.portal.stage import StageState, finish, judge, settle, settled_again
from certjob.portal.sync import LEASE_SECONDS, PortalSyncService, Wish
from certjob.review.certification import CertificationManagementService
from certjob.review.days import reject_wrong_day
from certjob.review.guards import MassChangeGuard

LOCK_WAIT_SECONDS = 10.0
"""How long to wait for another session that has locked the mentor."""
FLIGHT_WAIT_SECONDS = 60.0
"""How long to wait for another run that has claimed the push."""
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
class PauseDone:
    """The pause that a person has opened or lifted."""

    reason: str
    by: str
    is_new: bool
    """Whether the command opened or lifted the pause. False: the same pause was open already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resync:
    """The result of ``resync``, ``pause`` and ``unpause``."""

    report: ResyncReport
    before: MentorState
    after: MentorState
    error: DynamicsSyncException | MentorBusyError | None
    """Why the push failed, or MentorBusyError if another run kept it claimed."""
    pause: PauseDone | None = None
    not_reviewed: CertjobError | None = None
    """Why the mentor was not reviewed after a pause was opened or lifted."""


def resync(job: Job, mentor_id: UUID, *, accept_date: date | None = None) -> Resync:
    """Review one mentor and push the desired visibility, changed or not.

    Reminders are queued, and those that failed are due again. The next delivery sends them. Raises MentorBusyError if
    another session kept the mentor locked, the errors of ``reject_wrong_day``, and StoppedBySignalError after a signal.
    """
    reject_wrong_day(job.connection, job.today, zone=job.zone, accept_date=accept_date)
    before = describe(job.connection, mentor_id)
    report = ResyncReport(command="resync", run_id=job.run_id, today=job.today)
    with recorded(job, report) as beating:
        review_now(beating, report, mentor_id)
        error = push_now(beating, report, mentor_id)
    return Resync(report=report, before=before, after=describe(job.connection, mentor_id), error=error)


def review_now(job: Job, report: ResyncReport, mentor_id: UUID) -> None:
    """Review the mentor, queue a push, changed or not, and make failed reminders due again.

    The guards permit it, because a person asked for this mentor. Raises MentorBusyError after the wait for a lock.
    """
    connection, today, run_id = job.connection, job.today, job.run_id
    portal = PortalSyncService(connection, run_id=run_id)
    guard = MassChangeGuard(connection, today=today, allow=defaultdict[str, int](lambda: 1))
    service = CertificationManagementService(connection, today=today, run_id=run_id, guard=guard, stop=job.stop)
    report.review = service.counts

    def queue(decision: Decision) -> None:
        if decision.organisation.has_portal and not decision.nothing_to_hide:
            portal.queue([Wish.of(decision)])

    give_up_at = time.monotonic() + LOCK_WAIT_SECONDS
    while not service.review_one(mentor_id, then=queue):
        if time.monotonic() > give_up_at:
            message = f"mentor {mentor_id} is locked by another session (waited {LOCK_WAIT_SECONDS:g} s)"
            raise MentorBusyError(message, next_step="try again; the mentor was not changed")
        job.stop.sleep(_POLL_SECONDS)
    reopen_reminders(connection, mentor_id)


def push_now(job: Job, report: ResyncReport, mentor_id: UUID) -> DynamicsSyncException | MentorBusyError | None:
    """Push the mentor's open value, even before its retry time, and return why this failed, or None.

    Without a review, only a hide is pushed.
    """
    connection, stop = job.connection, job.stop
    mentor = describe(connection, mentor_id)
    if not (mentor.has_portal and mentor.open_push) or (mentor.desired and not report.review.reviewed):
        return None
    service = PortalSyncService(connection, run_id=job.run_id)
    state = StageState(deadline_at=time.monotonic() + LEASE_SECONDS, longest_pause_seconds=0.0)
    give_up_at = time.monotonic() + FLIGHT_WAIT_SECONDS
    error: DynamicsSyncException | MentorBusyError | None = None
    with stage(job, report, "portal") as begun:
        if job.make_portal is None:
            begun.ended = missing_portal(job)
            return None
        job.phase("Pushing to the portal")
        service.take_back()
        with (
            Calls(stop) as calls,
            settled_again(service, report.portal, state),
            calls.opened(job.make_portal()) as portal,
        ):
            while not (state.ended or state.crash or stop.is_set()):
                event = _claim(job, service, mentor_id, give_up_at=give_up_at)
                if not isinstance(event, PortalEvent):
                    error = event
                    break
                push = calls.make(push_once(event, portal=portal, stopped=calls.stopped))
                answer = settle(service, push, report.portal, state)
                if answer is not None and not stop.is_set():
                    judge(service, push, state)
                error = push.error
                if push.is_tried and answer is not Answer.LOST and (error is not None or answer is not Answer.RAISED):
                    break  # otherwise, a newer value was queued during the call
        begun.ended = finish(state, stop=stop)
    if isinstance(error, MentorBusyError):
        report.stopped.append(StageStop(stage="portal", code=StageEnd.IN_FLIGHT, reason=error.message))
        service.record_stage_end(error.message, end=StageEnd.IN_FLIGHT, mentor_id=mentor_id)
    next_try_at = describe(connection, mentor_id).next_try_at
    if error is not None and error.next_step is None and next_try_at is not None:
        error.next_step = f"it is tried again at {next_try_at.astimezone(job.zone):%Y-%m-%d %H:%M %Z}"
    return error


def _claim(
    job: Job, service: PortalSyncService, mentor_id: UUID, *, give_up_at: float
) -> PortalEvent | MentorBusyError | None:
    """Claim the open push, after a wait while another run has claimed it. Return None if there is none."""
    while True:
        claimed = service.claim_mentor(mentor_id, today=max(job.today, job.present_day()))
        if claimed:
            return claimed[0]
        mentor = describe(job.connection, mentor_id)
        if not (mentor.has_portal and mentor.open_push):
            return None
        if time.monotonic() > give_up_at:
            return MentorBusyError(
                f"another run has kept this push claimed for {FLIGHT_WAIT_SECONDS:g} s",
                next_step="the new value is queued: that run pushes it next, or, if that run has died, the first "
                f"`certjob run` or `certjob deliver` after {LEASE_SECONDS / 60:.0f} minutes",
            )
        job.stop.sleep(_POLL_SECONDS)


def describe(connection: Connection, mentor_id: UUID) -> MentorState:
    """Return one mentor's state. Raises UnknownMentorError if someone has deleted the mentor."""
    rows = database.fetch(connection, "describe_mentor", {"id": mentor_id}, into=MentorState)
    if not rows:
        message = f"mentor {mentor_id} has been deleted"
        raise UnknownMentorError(message)
    return rows[0]
