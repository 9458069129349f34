"""``certjob resync``: review one mentor and push the visibility now, before any retry time."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import (
    BrokenMentorError,
    CertjobError,
    DatabaseError,
    DynamicsSyncException,
    MentorBusyError,
    StageEnd,
    UnknownMentorError,
)
from certjob.jobs.job import Job
from certjob.jobs.job_runs import recorded
from certjob.jobs.report import ResyncReport
from certjob.jobs.runs import missing_portal, stage
from certjob.mail.reminders import reopen_failed_reminders
from certjob.outbox.calls import Calls
from certjob.outbox.claims import Answer, StageStop
from certjob.portal.push import push_once
from certjob.portal.stage import StageState, finish, judge, settle, settled_again
from certjob.portal.sync import LEASE_SECONDS, PortalSyncService, Wish
from certjob.redaction import without_people
from certjob.review.certification import CertificationManagementService
from certjob.review.days import reject_wrong_day
from certjob.review.guards import MassChangeGuard

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

    report: ResyncReport
    before: MentorState
    after: MentorState
    error: DynamicsSyncException | MentorBusyError | None
    not_reviewed: CertjobError | None = None
    """Why the mentor was not reviewed after a pause was opened or lifted."""


def resync(
    job: Job,
    mentor_id: UUID,
    *,
    command: str = "resync",
    accept_date: date | None = None,
    lock_wait_seconds: float = 10.0,
    flight_wait_seconds: float = 60.0,
) -> Resync:
    """Review one mentor and push the desired visibility, changed or not.

    Reminders are queued, and those that failed are due again. The next delivery sends them.

    With the ``command`` pause or unpause, someone has just stored this change. So an error of the review is kept in the
    result, and the hide of a pause is pushed in any case. ``error`` in the result is DynamicsSyncException if the push
    failed, and MentorBusyError if another run kept it claimed. Raises MentorBusyError if another session kept the
    mentor locked, the errors of ``reject_wrong_day``, and StoppedBySignalError after a signal.
    """
    connection, today, stop, zone = job.connection, job.today, job.stop, job.zone
    is_stored = command != "resync"
    if not is_stored:
        reject_wrong_day(connection, today, zone=zone, accept_date=accept_date)
    before = describe(connection, mentor_id)
    error: DynamicsSyncException | MentorBusyError | None = None
    not_reviewed: CertjobError | None = None
    portal = PortalSyncService(connection, run_id=job.run_id)
    allow = defaultdict[str, int](lambda: 1)  # a person asked for this mentor
    guard = MassChangeGuard(connection, today=today, run_id=job.run_id, allow=allow)
    service = CertificationManagementService(connection, today=today, run_id=job.run_id, guard=guard, stop=stop)
    report = ResyncReport(command=command, run_id=job.run_id, today=today, review=service.counts)
    queued = 0

    def queue(decision: Decision) -> None:
        nonlocal queued
        has_value = decision.organisation.has_portal and not decision.nothing_to_hide
        queued = portal.queue([Wish.of(decision)] if has_value else [])

    with recorded(job, report) as beating:
        try:
            if is_stored:
                reject_wrong_day(connection, today, zone=zone, accept_date=accept_date)
            _review(job, service, mentor_id, then=queue, lock_wait_seconds=lock_wait_seconds)
            if is_stored and mentor_id in service.counts.broken:
                message = f"mentor {mentor_id} could not be processed: {service.counts.broken[mentor_id]}"
                not_reviewed = BrokenMentorError(message)
        except (CertjobError, psycopg.Error) as failure:
            if not is_stored or stop.is_set() or (isinstance(failure, psycopg.Error) and database.is_lost(failure)):
                raise
            not_reviewed = _kept(failure)
        if queued or (command == "pause" and before.has_portal and before.open_push):
            error = _push(beating, report, portal, mentor_id, flight_wait_seconds=flight_wait_seconds)
        if isinstance(error, MentorBusyError):
            report.stopped.append(StageStop(stage="portal", code=StageEnd.IN_FLIGHT, reason=error.message))
            portal.record_stage_end(error.message, end=StageEnd.IN_FLIGHT, mentor_id=mentor_id)
    after = describe(connection, mentor_id)
    if error is not None and error.next_step is None and after.next_try_at is not None:
        error.next_step = f"it is tried again at {after.next_try_at.astimezone(zone):%Y-%m-%d %H:%M %Z}"
    return Resync(report=report, before=before, after=after, error=error, not_reviewed=not_reviewed)


def _review(
    job: Job,
    service: CertificationManagementService,
    mentor_id: UUID,
    *,
    then: Callable[[Decision], None],
    lock_wait_seconds: float,
) -> None:
    """Review the mentor, and make failed reminders due again. Raises MentorBusyError after the wait for a lock."""
    give_up_at = time.monotonic() + lock_wait_seconds
    while not service.review_one(mentor_id, then=then):
        if time.monotonic() > give_up_at:
            message = f"mentor {mentor_id} is locked by another session (waited {lock_wait_seconds:g} s)"
            raise MentorBusyError(message, next_step="try again; the mentor was not changed")
        job.stop.sleep(_POLL_SECONDS)
    reopen_failed_reminders(job.connection, mentor_id)


def _kept(failure: CertjobError | psycopg.Error) -> CertjobError:
    """Return an error of the review as one of certjob's own, without data about people."""
    if isinstance(failure, CertjobError):
        if isinstance(failure, MentorBusyError):
            failure.next_step = "the next run reviews the mentor"
        return failure
    text = without_people(failure.diag.message_primary or type(failure).__name__)
    return DatabaseError(
        f"the database rejected a statement: {text}", next_step="the next run reviews the mentor again"
    )


def _push(
    job: Job, report: ResyncReport, service: PortalSyncService, mentor_id: UUID, *, flight_wait_seconds: float
) -> DynamicsSyncException | MentorBusyError | None:
    """Push the mentor's open value, even before its retry time, and return why this failed, or None."""
    stop, counts = job.stop, report.portal
    state = StageState(deadline_at=time.monotonic() + LEASE_SECONDS, longest_pause_seconds=0.0)
    give_up_at = time.monotonic() + flight_wait_seconds
    error: DynamicsSyncException | None = None
    is_tried = False
    with stage(job, report, "portal") as begun:
        if job.make_portal is None:
            begun.ended = missing_portal(job)
            return None
        job.phase("Pushing to the portal")
        service.take_back()
        with (
            Calls(stop) as calls,
            settled_again(service, counts, state),
            calls.opened(job.make_portal()) as portal,
        ):
            while not (is_tried or state.ended or state.crash or stop.is_set()):
                # Claim the push. While another run has claimed it, wait.
                claimed = service.claim_mentor(mentor_id, today=max(job.today, job.present_day()))
                if not claimed:
                    mentor = describe(job.connection, mentor_id)
                    if not (mentor.has_portal and mentor.open_push):
                        break
                    if time.monotonic() > give_up_at:
                        return _busy(flight_wait_seconds)
                    stop.sleep(_POLL_SECONDS)
                    continue
                (event,) = claimed

                # Push, settle and judge it. A newer value that was queued during the call is claimed next.
                call = push_once(event, portal=portal, stopped=calls.stopped)
                push = calls.make(call)
                answer = settle(service, push, counts, state)
                if answer is not None and not stop.is_set():
                    judge(service, push, state)
                if push.is_tried and answer is not Answer.LOST:
                    error = push.error
                    is_tried = error is not None or answer is not Answer.RAISED
        begun.ended = finish(state, stop=stop)
    return error


def _busy(flight_wait_seconds: float) -> MentorBusyError:
    return MentorBusyError(
        f"another run has kept this push claimed for {flight_wait_seconds:g} s",
        next_step="the new value is queued: that run pushes it next, or, if that run has died, the first "
        f"`certjob run` or `certjob deliver` after {LEASE_SECONDS / 60:.0f} minutes",
    )


def describe(connection: Connection, mentor_id: UUID) -> MentorState:
    """Return one mentor's state. Raises UnknownMentorError if someone has deleted the mentor."""
    rows = database.fetch(connection, "describe_mentor", {"id": mentor_id}, into=MentorState)
    if not rows:
        message = f"mentor {mentor_id} has been deleted"
        raise UnknownMentorError(message)
    return rows[0]
