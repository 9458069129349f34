"""Resync of one mentor, now: review, then push the visibility whatever the retry time says."""

import time
from dataclasses import dataclass
from datetime import date
from uuid import UUID, uuid4

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import DynamicsSyncException, FailureCode, MentorBusyError, UnknownMentorError
from certjob.night.deliveries import Delivery
from certjob.night.job_runs import recorded
from certjob.night.report import RunReport
from certjob.outbox.claims import Answer, StageStop
from certjob.outbox.loop import DatabaseThread, run_loop
from certjob.outbox.retry import RetryPolicy, wait
from certjob.portal.push import MakeTarget, Push
from certjob.portal.stage import PortalStage
from certjob.portal.sync import LEASE_SECONDS, EventVersion, PortalCounts, PortalSyncService
from certjob.review.certification import CertificationManagementService
from certjob.review.days import refuse_wrong_day
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag

_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class MentorState:
    """One mentor as a person wants to see it."""

    member_no: str
    has_portal: bool
    desired: bool | None
    """The last visibility that was queued; None: nothing yet."""
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


def resync(
    connection: Connection,
    mentor_id: UUID,
    *,
    today: date,
    delivery: Delivery,
    stop: StopFlag,
    ignore_database_clock: bool = False,
    lock_wait_seconds: float = 10.0,
    flight_wait_seconds: float = 60.0,
    run_id: UUID | None = None,
) -> Resync:
    """Review one mentor and push the desired visibility even if nothing changed. Reminders are queued, not sent.

    The result's ``error`` says when the push did not succeed: DynamicsSyncException, or MentorBusyError while another
    run has claimed it. Raises MentorBusyError when the mentor's lock cannot be had.
    """
    refuse_wrong_day(connection, today, zone=delivery.zone, ignore_database_clock=ignore_database_clock)
    report = RunReport(command="resync", run_id=run_id or uuid4(), today=today)
    before = describe(connection, mentor_id)
    error: DynamicsSyncException | MentorBusyError | None = None
    with recorded(connection, report):
        portal = PortalSyncService(connection, run_id=report.run_id)
        queued = _review_and_queue(
            connection, mentor_id, report, portal=portal, stop=stop, wait_seconds=lock_wait_seconds
        )

        def end(code: FailureCode, reason: str) -> None:
            report.stopped.append(StageStop(stage="portal", code=code, reason=reason))
            portal.record_stage_end(reason, code=code, mentor_id=mentor_id)

        if queued is None:
            pass  # no portal
        elif delivery.make_target is None:
            end(FailureCode.NO_URL, "CERTJOB_PORTAL_URL is not set; the push stays pending")
        else:
            try:
                if not _push(
                    connection,
                    mentor_id,
                    queued,
                    report,
                    portal=portal,
                    make_target=delivery.make_target,
                    policy=delivery.policy,
                    stop=stop,
                    wait_seconds=flight_wait_seconds,
                ):
                    error = _claimed_by_another_run(waited_seconds=flight_wait_seconds)
                    end(FailureCode.IN_FLIGHT, error.message)
            except DynamicsSyncException as caught:
                error = caught
                if caught.retry_at is not None:
                    local = caught.retry_at.astimezone(delivery.zone)
                    caught.next_step = f"it is tried again at {local:%Y-%m-%d %H:%M %Z}"
    return Resync(report=report, before=before, after=describe(connection, mentor_id), error=error)


def describe(connection: Connection, mentor_id: UUID) -> MentorState:
    """Read one mentor's state."""
    rows = database.fetch(connection, "describe_mentor", {"id": mentor_id}, into=MentorState)
    if not rows:
        message = f"mentor {mentor_id} does not exist any more"
        raise UnknownMentorError(message)
    return rows[0]


def _review_and_queue(
    connection: Connection,
    mentor_id: UUID,
    report: RunReport,
    *,
    portal: PortalSyncService,
    stop: StopFlag,
    wait_seconds: float,
) -> EventVersion | None:
    """Review, and in the same transaction raise or insert the mentor's event; None without a portal."""
    service = CertificationManagementService(
        connection,
        today=report.today,
        run_id=report.run_id,
        guard=MassChangeGuard(connection, today=report.today, allow_mass_change=True),
        stop=stop,
    )
    report.review = service.counts
    queued: EventVersion | None = None

    def queue(decision: Decision) -> None:
        nonlocal queued
        has_portal = decision.organisation.has_portal
        queued = portal.force(decision.mentor_id, visible=decision.visible) if has_portal else None

    give_up_at = time.monotonic() + wait_seconds
    while not service.review_one(mentor_id, then=queue):
        if time.monotonic() > give_up_at:
            waited = f"waited {wait_seconds:g} s"
            message = f"mentor {mentor_id} is locked by another session ({waited})"
            raise MentorBusyError(message, next_step="nothing was changed, try again")
        stop.sleep(_POLL_SECONDS)
    return queued


def _claimed_by_another_run(*, waited_seconds: float) -> MentorBusyError:
    return MentorBusyError(
        f"another run has kept this push claimed for {waited_seconds:g} s",
        next_step="the new value is queued: that run pushes it next, or, if that run has died, the first "
        f"`certjob run` or `certjob deliver` after {LEASE_SECONDS / 60:.0f} minutes",
    )


def _push(
    connection: Connection,
    mentor_id: UUID,
    queued: EventVersion,
    report: RunReport,
    *,
    portal: PortalSyncService,
    make_target: MakeTarget,
    policy: RetryPolicy,
    stop: StopFlag,
    wait_seconds: float,
) -> bool:
    """Push the queued value; wait for another run's call in flight instead of racing it.

    Returns whether the value has arrived, by this run or another, or is obsolete; False: another run has kept the event
    claimed. Raises DynamicsSyncException when the push did not succeed, StoppedBySignalError after a signal.
    """

    report.portal = counts = PortalCounts()

    async def is_done(database: DatabaseThread) -> bool:
        ended: list[tuple[Push, Answer]] = []
        stage = PortalStage(
            portal,
            database=database,
            make_target=make_target,
            policy=policy,
            claim=lambda _limit: [] if ended else portal.claim_mentor(mentor_id),
            longest_pause_seconds=0.0,
            on_settled=lambda push, answer: ended.append((push, answer)),
            counts=counts,
        )
        early = await stage.run(deadline_seconds=LEASE_SECONDS)
        if early is not None:
            report.stopped.append(early)
        if database.stopped.is_set() or any(_is_what_was_asked(*each) for each in ended):
            return True
        return not await database.run(lambda: portal.is_open(queued))

    async def push_in_time(database: DatabaseThread) -> bool:
        give_up_at = time.monotonic() + wait_seconds
        while not await is_done(database):
            if time.monotonic() > give_up_at:
                return False
            await wait(_POLL_SECONDS, database.stopped)
        return True

    done = run_loop(push_in_time, connection=connection, stop=stop, deadline_seconds=wait_seconds + LEASE_SECONDS)
    stop.check()
    return done


def _is_what_was_asked(push: Push, answer: Answer) -> bool:
    """Whether this push is what the resync was asked for; raise what went wrong with it."""
    if not push.is_tried or answer is Answer.LOST:  # another run has taken it over
        return False
    if push.error is not None:
        raise push.error
    return answer is not Answer.RAISED
