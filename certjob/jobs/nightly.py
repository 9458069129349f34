"""One night in order: plan or apply, then deliver, then say what happened."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
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

    It first reviews the due mentors who have an open push: a show that is not true any more becomes a hide. On a day
    that cannot be believed (not the database server's, or before the last run's, unless it is the ``accept_date``) it
    reviews no one and pushes hides only.
    """
    report = RunReport(
        command="deliver", run_id=run_id or uuid4(), today=today, reminders=MailCounts(), digests=MailCounts()
    )
    wrong_day = why_wrong_day(connection, today, zone=delivery.zone, accept_date=accept_date)
    report.known_stops = read_known_stops(connection, report.today)
    with recorded(connection, report, progress=progress) as beating:
        if wrong_day is None:
            _review_open_pushes(connection, report, stop=stop)
        deliveries = Deliveries(connection, report, delivery=delivery, stop=stop, progress=beating, wrong_day=wrong_day)
        deliveries.deliver()
    return report


def _review_open_pushes(connection: Connection, report: RunReport, *, stop: StopFlag) -> None:
    """Review the due mentors who have an open push, with the guard; the next run reports the others."""
    guard = MassChangeGuard(connection, today=report.today)
    service = CertificationManagementService(
        connection, today=report.today, run_id=report.run_id, guard=guard, stop=stop
    )
    service.apply_open_pushes()


@dataclass(frozen=True, slots=True, kw_only=True)
class NightOptions:
    """What ``certjob run`` was asked for."""

    today: date
    organisation: str | None = None
    dry_run: bool = False
    allow: Mapping[str, int] = field(default_factory=Counter)
    """How many surprising changes a person permits, by organisation; a missing slug must give 0."""
    accept_date: date | None = None
    """The date that a person has said to be right; it must be ``today``."""
    deliver: bool = True
    everybody: bool = False
    """All mentors are due now, whatever was noted for them."""
    run_id: UUID = field(default_factory=uuid4)


def run(
    connection: Connection,
    *,
    options: NightOptions,
    delivery: Delivery,
    stop: StopFlag,
    progress: Progress,
) -> RunReport:
    """Run the night: review every due mentor, then deliver portal events and reminders.

    Raises ConfigurationError for an unknown organisation or a day before the last night's, ClocksDisagreeError for a
    day that is not the database server's, StoppedBySignalError after a signal; then ``job_runs`` says ``failed``. What
    was committed stays.
    """
    organisation_id = find_organisation(connection, options.organisation) if options.organisation else None
    for slug in options.allow:
        find_organisation(connection, slug)
    refuse_wrong_day(connection, options.today, zone=delivery.zone, accept_date=options.accept_date)
    report = RunReport(
        command="run",
        run_id=options.run_id,
        today=options.today,
        dry_run=options.dry_run,
        reminders=MailCounts(),
        digests=MailCounts(),
    )
    if options.dry_run:
        _plan(connection, report, options=options, organisation_id=organisation_id, progress=progress)
        return report
    report.known_stops = read_known_stops(connection, report.today)
    with recorded(
        connection,
        report,
        organisation=options.organisation,
        organisation_id=organisation_id,
        progress=progress,
        everybody=options.everybody,
    ) as beating:
        on_progress = beating.phase("Reviewing mentors")  # the guard's count is a part of it
        guard = MassChangeGuard(connection, today=options.today, allow=options.allow)
        guard.examine(organisation_id)
        service = CertificationManagementService(
            connection, today=options.today, run_id=report.run_id, guard=guard, stop=stop, on_progress=on_progress
        )
        report.review = service.counts
        service.apply_due(organisation_id)
        report.held = guard.lines
        deliveries = Deliveries(
            connection, report, delivery=delivery, stop=stop, progress=beating, organisation_id=organisation_id
        )
        if options.deliver:
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

    As ``deliver`` does, it first reviews the due mentors among them, and on a wrong day pushes hides only.
    """
    report = RunReport(command="alerts", run_id=run_id or uuid4(), today=today)
    wrong_day = why_wrong_day(connection, today, zone=delivery.zone, accept_date=None)
    with recorded(connection, report, progress=progress) as beating:
        if wrong_day is None:
            _review_open_pushes(connection, report, stop=stop)
        report.reopened = PortalSyncService(connection, run_id=report.run_id).reopen_all()
        Deliveries(connection, report, delivery=delivery, stop=stop, progress=beating, wrong_day=wrong_day).push()
    return report


def _plan(
    connection: Connection,
    report: RunReport,
    *,
    options: NightOptions,
    organisation_id: UUID | None,
    progress: Progress,
) -> None:
    """Fill the report with what a run would do: one read-only snapshot, no write, no lock, no call."""
    on_progress = progress.phase("Reviewing mentors")  # the guard's count is a part of it
    with database.read_only_snapshot(connection):
        everybody = options.everybody or looks_at_everybody(connection, options.today)
        guard = MassChangeGuard(connection, today=options.today, allow=options.allow, everybody=everybody)
        guard.examine(organisation_id)
        counts = ReviewCounts()
        for decided, broken in plan.due_decisions(
            connection, today=options.today, organisation_id=organisation_id, everybody=everybody
        ):
            counts.broken.update(broken)
            guard.admit(decided)
            new: dict[UUID, list[Reminder]] = defaultdict(list)
            for mentor_id, reminder in find_new_reminders(connection, decided):
                new[mentor_id].append(reminder)
            unreachable = find_without_address(connection, new)
            for decision in decided:
                is_held = guard.hold_of(decision) is not None
                reminders_are_held = is_held or (decision.organisation.id, REMINDERS) in guard.held
                if not is_held:
                    counts.add(decision)
                if not reminders_are_held:
                    counts.reminders_queued += len(new[decision.mentor_id])
                if decision.transitions or decision.pause or decision.push or new[decision.mentor_id]:
                    change = PlannedChange(
                        decision=decision,
                        new_reminders=tuple(new[decision.mentor_id]),
                        has_address=decision.mentor_id not in unreachable,
                        is_held=is_held,
                        reminders_are_held=reminders_are_held,
                    )
                    report.changes.append(change)
            on_progress(counts.reviewed)
        report.changes.sort(key=PlannedChange.sort_key)
        report.review = counts
        report.held = guard.lines
        report.open_work = read_open_work(connection)
