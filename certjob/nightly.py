"""One night in order: plan or apply, then deliver, then say what happened."""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol
from uuid import UUID

import psycopg

from certjob import database, planning
from certjob.certification import CertificationManagementService
from certjob.database import Connection
from certjob.errors import ConfigurationError, StoppedBySignalError
from certjob.guards import MassChangeGuard
from certjob.job_runs import looks_at_everybody, recorded, refuse_earlier_date
from certjob.mail_stage import MailStage
from certjob.models import Reminder
from certjob.notify import Channel
from certjob.portal_stage import PortalStage
from certjob.portal_sync import PortalCounts, PortalSyncService, PortalTarget, portal_policy
from certjob.reminders import CertificationReminderService
from certjob.report import PlannedChange, RunReport
from certjob.retry import RetryPolicy
from certjob.review_counts import ReviewCounts
from certjob.stages import CRASH, StageStop
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

PORTAL_SHARE = 0.75
"""The portal's part of the time for deliveries: a slow portal leaves some of it to the mail."""


class Progress(Protocol):
    """Shows how far a phase has come; on a terminal, else nowhere."""

    def phase(self, name: str) -> Callable[[int], None]:
        """Begin a phase and return what to tell the count to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How intents leave the machine."""

    make_target: Callable[[], AbstractContextManager[PortalTarget]] | None
    """One portal client per thread; None = CERTJOB_PORTAL_URL is not set."""
    channel: Channel | None = None
    """None = CERTJOB_NOTIFY_URL is not set."""
    mail_from: str | None = None
    policy: RetryPolicy = field(default_factory=lambda: portal_policy(max_attempts=3))
    concurrency: int = 4
    calls_per_second: float = 0.0
    deadline_seconds: float = 7200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NightOptions:
    """What ``certjob run`` was asked for."""

    today: date
    organisation: str | None = None
    dry_run: bool = False
    allow_mass_change: bool = False
    allow_earlier_date: bool = False
    deliver: bool = True


def run(
    connection: Connection, *, options: NightOptions, delivery: Delivery, stop: StopFlag, progress: Progress
) -> RunReport:
    """Run the night: review every due mentor, then deliver portal events and reminders.

    Raises ConfigurationError for an unknown organisation or a day before the last night's, StoppedBySignalError after a
    signal; then ``job_runs`` says ``failed``. What was committed stays.
    """
    organisation_id = find_organisation(connection, options.organisation) if options.organisation else None
    if not options.allow_earlier_date:
        refuse_earlier_date(connection, options.today)
    report = RunReport(command="run", today=options.today, dry_run=options.dry_run)
    if options.dry_run:
        _plan(connection, report, options=options, organisation_id=organisation_id)
        report.finish()
        return report
    with recorded(connection, report, organisation=options.organisation, organisation_id=organisation_id):
        _apply(connection, report, options=options, organisation_id=organisation_id, stop=stop, progress=progress)
        if options.deliver:
            _deliver(connection, report, delivery=delivery, stop=stop, progress=progress)
        read_backlog(connection, report)
    return report


def deliver(
    connection: Connection,
    *,
    today: date,
    allow_earlier_date: bool,
    delivery: Delivery,
    stop: StopFlag,
    progress: Progress,
) -> RunReport:
    """Deliver what is queued and due, reviewing nobody: the background job between the nights."""
    if not allow_earlier_date:
        refuse_earlier_date(connection, today)
    report = RunReport(command="deliver", today=today)
    stops = database.fetch_value(connection, "read_last_stops")
    report.known_stops = frozenset(stops or ())
    with recorded(connection, report):
        _deliver(connection, report, delivery=delivery, stop=stop, progress=progress)
        read_backlog(connection, report)
    return report


def find_organisation(connection: Connection, slug: str) -> UUID:
    """Return the id of an organisation. Raises ConfigurationError naming the slug."""
    organisation_id = database.fetch_value(connection, "find_organisation", {"slug": slug})
    if organisation_id is None:
        message = f"no organisation {slug!r}; see `certjob organisation list`"
        raise ConfigurationError(message)
    return UUID(str(organisation_id))


def read_backlog(connection: Connection, report: RunReport) -> None:
    """Note what is open now."""
    rows = database.fetch(connection, "count_portal_backlog")
    report.portal_pending, report.portal_blocked, report.portal_alerts = rows[0]
    report.reminders_pending = database.fetch_value(connection, "count_reminder_backlog")
    report.digests_pending = database.fetch_value(connection, "count_pending_digests")


def _plan(connection: Connection, report: RunReport, *, options: NightOptions, organisation_id: UUID | None) -> None:
    """Fill the report with what a run would do: one read-only snapshot, no write, no lock, no call."""
    with database.read_only_snapshot(connection):
        reminders = CertificationReminderService(connection, run_id=report.run_id)
        everybody = looks_at_everybody(connection, options.today)
        guard = MassChangeGuard(
            connection,
            today=options.today,
            reminders=reminders,
            allow_mass_change=options.allow_mass_change,
            everybody=everybody,
        )
        guard.examine(organisation_id)
        counts = ReviewCounts()
        for decided, problems in planning.due_decisions(
            connection, today=options.today, organisation_id=organisation_id, everybody=everybody
        ):
            counts.broken.update({problem.mentor_id: problem.reason for problem in problems})
            decisions = guard.admit(decided)
            new: dict[UUID, list[Reminder]] = defaultdict(list)
            for mentor_id, reminder in reminders.find_new(
                decision for decision in decisions if decision.organisation.id not in guard.held_reminders
            ):
                new[mentor_id].append(reminder)
            counts.reminders_queued += sum(map(len, new.values()))
            for decision in decisions:
                counts.add(decision)
                counts.portal_queued += decision.push
                if decision.transitions or decision.pause or decision.push or new[decision.mentor_id]:
                    change = PlannedChange(decision=decision, new_reminders=tuple(new[decision.mentor_id]))
                    report.changes.append(change)
        report.changes.sort(key=PlannedChange.sort_key)
        report.review = counts
        report.held = guard.lines
        read_backlog(connection, report)


def _apply(
    connection: Connection,
    report: RunReport,
    *,
    options: NightOptions,
    organisation_id: UUID | None,
    stop: StopFlag,
    progress: Progress,
) -> None:
    reminders = CertificationReminderService(connection, run_id=report.run_id)
    guard = MassChangeGuard(
        connection, today=options.today, reminders=reminders, allow_mass_change=options.allow_mass_change
    )
    guard.examine(organisation_id)
    service = CertificationManagementService(
        connection,
        today=options.today,
        run_id=report.run_id,
        guard=guard,
        reminders=reminders,
        portal=PortalSyncService(connection, run_id=report.run_id),
        stop=stop,
        on_progress=progress.phase("Reviewing mentors"),
    )
    report.review = service.counts
    service.apply_due(organisation_id)
    report.held = guard.lines


def _deliver(
    connection: Connection, report: RunReport, *, delivery: Delivery, stop: StopFlag, progress: Progress
) -> None:
    """Portal first, then mail; whatever ends the one early does not touch the other."""
    started_at = time.monotonic()
    for name, stage, share in (("portal", _deliver_portal, PORTAL_SHARE), ("mail", _deliver_mail, 1.0)):
        deadline_seconds = delivery.deadline_seconds * share - (time.monotonic() - started_at)
        try:
            stopped = stage(
                connection, report, delivery=delivery, deadline_seconds=deadline_seconds, stop=stop, progress=progress
            )
        except StoppedBySignalError:
            raise
        except Exception as error:
            if connection.closed:
                raise
            # Something in one stage that nobody foresaw: the other one still runs, and the run says failed.
            logger.debug("the %s stage ended by an unforeseen error", name, exc_info=True)
            report.crashed = True
            # Without the DETAIL of a database error, which holds names and addresses.
            text = (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)
            stopped = StageStop(stage=name, code=CRASH, reason=f"unforeseen {type(error).__name__}: {text}")
        if stopped is not None:
            report.stopped.append(stopped)


def _deliver_portal(
    connection: Connection,
    report: RunReport,
    *,
    delivery: Delivery,
    deadline_seconds: float,
    stop: StopFlag,
    progress: Progress,
) -> StageStop | None:
    service = PortalSyncService(connection, run_id=report.run_id)
    report.portal = PortalCounts()
    if delivery.make_target is None:
        pending, blocked, _ = database.fetch(connection, "count_portal_backlog")[0]
        if not pending + blocked:
            return None
        missing = "CERTJOB_PORTAL_URL is not set"
        service.record_stage_end(missing)
        number = pending + blocked
        reason = f"{missing}; " + ("1 push stays pending" if number == 1 else f"{number:,} pushes stay pending")
        return StageStop(stage="portal", code="no_url", reason=reason)
    stage = PortalStage(
        service,
        make_target=delivery.make_target,
        policy=delivery.policy,
        concurrency=delivery.concurrency,
        calls_per_second=delivery.calls_per_second,
        stop=stop,
        on_progress=progress.phase("Pushing to the portal"),
    )
    report.portal = stage.counts
    return stage.run(deadline_seconds=deadline_seconds)


def _deliver_mail(
    connection: Connection,
    report: RunReport,
    *,
    delivery: Delivery,
    deadline_seconds: float,
    stop: StopFlag,
    progress: Progress,
) -> StageStop | None:
    channel = delivery.channel
    if channel is None:
        pending = database.fetch_value(connection, "count_reminder_backlog")
        if not pending:
            return None
        rest = "1 reminder stays pending" if pending == 1 else f"{pending:,} reminders stay pending"
        reason = f"CERTJOB_NOTIFY_URL is not set; {rest}"
        return StageStop(stage="mail", code="no_url", reason=reason)
    stage = MailStage(
        CertificationReminderService(connection, run_id=report.run_id),
        channel=channel,
        mail_from=delivery.mail_from,
        today=report.today,
        stop=stop,
        on_progress=progress.phase("Sending reminders"),
    )
    report.reminders = stage.counts
    try:
        return stage.run(deadline_seconds=deadline_seconds)
    finally:
        channel.close()
