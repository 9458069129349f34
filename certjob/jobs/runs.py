"""The runs that cron and people start: ``run`` (review and deliver), ``deliver``, and ``alerts --retry-all``."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Reminder
from certjob.facts.lookup import find_organisation
from certjob.jobs.deliveries import Deliveries, Job
from certjob.jobs.job_runs import recorded
from certjob.jobs.mirror import copy_facts
from certjob.jobs.report import DeliverReport, RetryReport, RunReport
from certjob.mail.reminders import find_new_reminders, find_without_address
from certjob.outbox.open_work import read_open_work
from certjob.portal.sync import PortalSyncService
from certjob.review import plan
from certjob.review.attention import note_renewal_gaps
from certjob.review.certification import CertificationManagementService
from certjob.review.days import looks_at_everybody, reject_wrong_day, why_wrong_day
from certjob.review.guards import MassChangeGuard
from certjob.review.plan import PlannedChange, ReviewCounts


def deliver(job: Job, *, accept_date: date | None = None) -> DeliverReport:
    """Deliver due pushes and mail.

    If today's date is not trusted (see ``why_wrong_day``), send hides only.
    """
    report = DeliverReport(run_id=job.run_id, today=job.today)
    wrong_day = why_wrong_day(job.connection, job.today, zone=job.delivery.zone, accept_date=accept_date)
    with recorded(job, report) as beating:
        Deliveries(beating, report, wrong_day=wrong_day).deliver(report.mail)
    return report


def run(
    job: Job,
    *,
    organisation: str | None = None,
    dry_run: bool = False,
    allow: Mapping[str, int] = Counter(),
    accept_date: date | None = None,
    everybody: bool = False,
    deliver: bool = True,
) -> RunReport:
    """Review the due mentors, or on request all mentors, then deliver pushes and mail.

    ``organisation`` is a slug and limits the review. ``allow`` is as in ``MassChangeGuard``, ``accept_date`` as in
    ``reject_wrong_day``. Raises ConfigurationError for an unknown organisation, the errors of ``reject_wrong_day``, and
    StoppedBySignalError after a signal. Committed changes stay.
    """
    connection, today = job.connection, job.today
    organisation_id = find_organisation(connection, organisation) if organisation else None
    for slug in allow:
        find_organisation(connection, slug)
    reject_wrong_day(connection, today, zone=job.delivery.zone, accept_date=accept_date)
    report = RunReport(run_id=job.run_id, today=today, dry_run=dry_run)
    if dry_run:
        on_progress = job.progress.phase("Reviewing mentors")  # includes the guard's count
        plan_run(
            connection,
            report,
            organisation_id=organisation_id,
            allow=allow,
            everybody=everybody,
            on_progress=on_progress,
        )
        return report
    with recorded(
        job, report, organisation=organisation, organisation_id=organisation_id, everybody=everybody
    ) as beating:
        report.stopped += copy_facts(connection, today=today)
        on_progress = beating.progress.phase("Reviewing mentors")  # includes the guard's count
        guard = MassChangeGuard(connection, today=today, run_id=job.run_id, allow=allow)
        guard.examine(organisation_id)
        service = CertificationManagementService(
            connection, today=today, run_id=job.run_id, guard=guard, stop=job.stop, on_progress=on_progress
        )
        report.review = service.counts
        service.apply_due(organisation_id)
        report.held = [hold.line for hold in guard.held.values()]
        if report.review.reviewed:  # otherwise no certificate has ended or was entered since the last run
            note_renewal_gaps(connection, today=today)
        deliveries = Deliveries(beating, report, organisation_id=organisation_id, after_review=True)
        if deliver:
            deliveries.deliver(report.mail)
        else:
            deliveries.queue_digests()
    return report


def retry_all(job: Job) -> RetryReport:
    """Make all open pushes due, also blocked ones, and push. No mail is sent.

    If today's date is not trusted, send hides only, as ``deliver`` does.
    """
    report = RetryReport(run_id=job.run_id, today=job.today)
    wrong_day = why_wrong_day(job.connection, job.today, zone=job.delivery.zone, accept_date=None)
    with recorded(job, report) as beating:
        report.reopened = PortalSyncService(job.connection, run_id=job.run_id).reopen_all()
        Deliveries(beating, report, wrong_day=wrong_day).push()
    return report


def plan_next_run(connection: Connection, *, today: date, organisation_id: UUID | None = None) -> RunReport:
    """Return the plan of a run of everyone, or of one organisation, with the guards of a run without --allow."""
    report = RunReport(today=today, dry_run=True)
    plan_run(connection, report, organisation_id=organisation_id)
    return report


def plan_run(
    connection: Connection,
    report: RunReport,
    *,
    organisation_id: UUID | None = None,
    allow: Mapping[str, int] = Counter(),
    everybody: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Fill the report of a dry run from one read-only snapshot, without locks and calls."""
    today, counts = report.today, ReviewCounts()
    with database.read_only_snapshot(connection):
        everybody = everybody or looks_at_everybody(connection, today)
        guard = MassChangeGuard(connection, today=today, run_id=None, allow=allow, everybody=everybody)
        guard.examine(organisation_id)
        for decisions, broken in plan.due_decisions(
            connection, today=today, organisation_id=organisation_id, everybody=everybody
        ):
            counts.broken |= broken
            new: dict[UUID, list[Reminder]] = defaultdict(list)
            for mentor_id, reminder in find_new_reminders(connection, decisions, today=today):
                new[mentor_id].append(reminder)
            unreachable = find_without_address(connection, new)
            counts.add([decision for decision in decisions if guard.hold_of(decision) is None])
            for decision in decisions:
                hold, reminders = guard.hold_of(decision), new[decision.mentor_id]
                change = PlannedChange(
                    decision=decision,
                    new_reminders=tuple(reminders),
                    has_address=decision.mentor_id not in unreachable,
                    held_because=decision.surprise.effect if hold else None,
                    reminders_are_held=hold is not None or guard.hold_of_reminders(decision, reminders) is not None,
                )
                counts.held_back += change.is_held
                if change.reminders_are_held:
                    counts.reminders_held_back += len(change.new_reminders)
                else:
                    counts.reminders_queued += len(change.new_reminders)
                if decision.transitions or decision.pause or decision.push or change.new_reminders:
                    report.changes.append(change)
            on_progress(counts.reviewed)
        report.review = counts
        report.held = [hold.line for hold in guard.held.values()]
        report.open_work = read_open_work(connection)
