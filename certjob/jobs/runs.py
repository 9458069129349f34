"""One night in order: plan or apply, then deliver, then say what happened."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import date
from uuid import UUID, uuid4

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Reminder
from certjob.facts.lookup import find_organisation
from certjob.jobs.deliveries import Deliveries, Delivery, Progress
from certjob.jobs.job_runs import read_known_stops, recorded
from certjob.jobs.report import PlannedChange, RunReport
from certjob.mail.reminders import find_new_reminders, find_without_address
from certjob.mail.stage import MailCounts
from certjob.outbox.open_work import read_open_work
from certjob.portal.sync import PortalSyncService
from certjob.review import plan
from certjob.review.certification import CertificationManagementService
from certjob.review.days import looks_at_everybody, refuse_wrong_day, why_wrong_day
from certjob.review.guards import REMINDERS, MassChangeGuard
from certjob.review.plan import ReviewCounts
from certjob.stopping import StopFlag


def deliver(
    connection: Connection,
    *,
    today: date,
    delivery: Delivery,
    stop: StopFlag,
    progress: Progress,
    accept_date: date | None = None,
    run_id: UUID | None = None,
) -> RunReport:
    """Deliver what is queued and due: the background job between the nights.

    On a day that cannot be believed (not the database server's, or before the last run's, unless it is the
    ``accept_date``) it pushes hides only.
    """
    report = RunReport(
        command="deliver", run_id=run_id or uuid4(), today=today, reminders=MailCounts(), digests=MailCounts()
    )
    wrong_day = why_wrong_day(connection, today, zone=delivery.zone, accept_date=accept_date)
    report.known_stops = read_known_stops(connection, report.today)
    with recorded(connection, report, progress=progress) as beating:
        deliveries = Deliveries(connection, report, delivery=delivery, stop=stop, progress=beating, wrong_day=wrong_day)
        deliveries.deliver()
    return report


def run(
    connection: Connection,
    *,
    today: date,
    delivery: Delivery,
    stop: StopFlag,
    progress: Progress,
    organisation: str | None = None,
    dry_run: bool = False,
    allow: Mapping[str, int] = Counter(),
    accept_date: date | None = None,
    everybody: bool = False,
    deliver: bool = True,
    run_id: UUID | None = None,
) -> RunReport:
    """Review every due mentor (with ``everybody``: all), then deliver portal events and mail.

    ``organisation`` is the slug of the only one that is reviewed, ``allow`` as in ``MassChangeGuard``, ``accept_date``
    the date that a person has said to be right. Raises ConfigurationError for an unknown organisation or a day before
    an earlier run's, ClocksDisagreeError for a day that is not the database server's, StoppedBySignalError after a
    signal; then ``job_runs`` says ``failed``. What was committed stays.
    """
    organisation_id = find_organisation(connection, organisation) if organisation else None
    for slug in allow:
        find_organisation(connection, slug)
    refuse_wrong_day(connection, today, zone=delivery.zone, accept_date=accept_date)
    report = RunReport(command="run", run_id=run_id or uuid4(), today=today, dry_run=dry_run)
    report.reminders, report.digests = MailCounts(), MailCounts()
    if dry_run:
        _plan(connection, report, organisation_id=organisation_id, allow=allow, everybody=everybody, progress=progress)
        return report
    report.known_stops = read_known_stops(connection, today)
    with recorded(
        connection,
        report,
        organisation=organisation,
        organisation_id=organisation_id,
        progress=progress,
        everybody=everybody,
    ) as beating:
        on_progress = beating.phase("Reviewing mentors")  # the guard's count is a part of it
        guard = MassChangeGuard(connection, today=today, allow=allow)
        guard.examine(organisation_id)
        service = CertificationManagementService(
            connection, today=today, run_id=report.run_id, guard=guard, stop=stop, on_progress=on_progress
        )
        report.review = service.counts
        service.apply_due(organisation_id)
        report.held = guard.lines
        deliveries = Deliveries(
            connection, report, delivery=delivery, stop=stop, progress=beating, organisation_id=organisation_id
        )
        if deliver:
            deliveries.deliver()
        else:
            deliveries.queue_digests()
    return report


def retry_all(
    connection: Connection,
    *,
    today: date,
    delivery: Delivery,
    stop: StopFlag,
    progress: Progress,
    run_id: UUID | None = None,
) -> RunReport:
    """Reopen every open push, blocked ones too, whatever its retry time says, and push them; no mail is sent.

    On a wrong day it pushes hides only, as ``deliver`` does.
    """
    report = RunReport(command="alerts", run_id=run_id or uuid4(), today=today)
    wrong_day = why_wrong_day(connection, today, zone=delivery.zone, accept_date=None)
    with recorded(connection, report, progress=progress) as beating:
        report.reopened = PortalSyncService(connection, run_id=report.run_id).reopen_all()
        Deliveries(connection, report, delivery=delivery, stop=stop, progress=beating, wrong_day=wrong_day).push()
    return report


def _plan(
    connection: Connection,
    report: RunReport,
    *,
    organisation_id: UUID | None,
    allow: Mapping[str, int],
    everybody: bool,
    progress: Progress,
) -> None:
    """Fill the report with what a run would do: one read-only snapshot, no write, no lock, no call."""
    today, counts = report.today, ReviewCounts()
    on_progress = progress.phase("Reviewing mentors")  # the guard's count is a part of it
    with database.read_only_snapshot(connection):
        everybody = everybody or looks_at_everybody(connection, today)
        guard = MassChangeGuard(connection, today=today, allow=allow, everybody=everybody)
        guard.examine(organisation_id)
        for decisions, broken in plan.due_decisions(
            connection, today=today, organisation_id=organisation_id, everybody=everybody
        ):
            counts.broken |= broken
            guard.admit(decisions)
            new: dict[UUID, list[Reminder]] = defaultdict(list)
            for mentor_id, reminder in find_new_reminders(connection, decisions):
                new[mentor_id].append(reminder)
            unreachable = find_without_address(connection, new)
            for decision in decisions:
                change = PlannedChange(
                    decision=decision,
                    new_reminders=tuple(new[decision.mentor_id]),
                    has_address=decision.mentor_id not in unreachable,
                    is_held=guard.hold_of(decision) is not None,
                    reminders_are_held=guard.hold_of(decision, REMINDERS) is not None,
                )
                if not change.is_held:
                    counts.add(decision)
                if not change.reminders_are_held:
                    counts.reminders_queued += len(change.new_reminders)
                if decision.transitions or decision.pause or decision.push or change.new_reminders:
                    report.changes.append(change)
            on_progress(counts.reviewed)
        report.changes.sort(key=PlannedChange.sort_key)
        report.review = counts
        report.held = guard.lines
        report.open_work = read_open_work(connection)
