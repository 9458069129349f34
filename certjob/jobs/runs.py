"""The runs that cron and people start: ``run`` (review and deliver), ``deliver``, and ``alerts --retry-all``.

A run from its beginning to its end: ``recorded`` writes its row, ``copy_facts`` copies the app's facts, the review
stores decisions and queues pushes and reminders, ``push`` calls the portal, ``_send_mail`` sends reminders and digests,
and ``recorded`` reads the alerts and writes the end. A failed stage does not prevent the next one.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import CONTENTION, is_lost
from certjob.errors import DatabaseUnavailableError, StageEnd, StoppedBySignalError
from certjob.facts.lookup import find_organisation
from certjob.jobs.job import Advance, Job
from certjob.jobs.job_runs import recorded
from certjob.jobs.mirror import copy_facts
from certjob.jobs.planning import plan_run
from certjob.jobs.report import DeliverReport, Report, RetryReport, RunReport
from certjob.mail.digests import DigestMail, queue_digests, reopen_digests
from certjob.mail.messages.templates import OUR_TEMPLATES, Templates
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.reminders import reopen_reminders
from certjob.mail.stage import send_mails
from certjob.outbox.calls import Calls
from certjob.outbox.claims import StageStop
from certjob.outbox.open_work import MAIL_KINDS, PORTAL_KINDS, read_open_work
from certjob.portal.stage import deliver_pushes
from certjob.portal.sync import PortalSyncService
from certjob.redaction import without_people
from certjob.review.certification import CertificationManagementService
from certjob.review.days import reject_wrong_day, why_wrong_day
from certjob.review.guards import MassChangeGuard

logger = logging.getLogger(__name__)

PORTAL_SHARE = 0.75
"""The portal's share of the time for deliveries. The rest is reserved for mail if the portal is slow."""

ABOUT_REMINDERS_ALONE = frozenset({StageEnd.ALL_REFUSED, StageEnd.CRASH})
"""Ends of the reminder stage that need not be the mail server's fault. Digests are still sent, and report them."""

_LOCK_TIMEOUT_MS = 10_000
_LOCKED = "a table or a row is locked by another database session; end that session; the rest stays pending"


def run(
    job: Job,
    *,
    organisation: str | None = None,
    dry_run: bool = False,
    allow: Mapping[str, int] = Counter(),
    accept_date: date | None = None,
    everybody: bool = False,
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
    reject_wrong_day(connection, today, zone=job.zone, accept_date=accept_date)
    report = RunReport(run_id=job.run_id, today=today, dry_run=dry_run)
    if dry_run:
        on_progress = job.phase("Reviewing mentors")  # includes the guard's count
        plan_run(
            connection,
            report,
            organisation_id=organisation_id,
            allow=allow,
            everybody=everybody,
            on_progress=on_progress,
        )
        return report
    queue = partial(queue_digests, connection, today=today, organisation=organisation)
    with recorded(
        job, report, organisation=organisation, organisation_id=organisation_id, everybody=everybody
    ) as beating:
        review(beating, report, organisation_id=organisation_id, allow=allow)
        _deliver(beating, report, queue=queue)
    return report


def review(
    job: Job, report: RunReport, *, organisation_id: UUID | None = None, allow: Mapping[str, int] = Counter()
) -> None:
    """Copy the facts of an app, and review the due mentors. Raises StoppedBySignalError."""
    report.stopped += copy_facts(job.connection)
    on_progress = job.phase("Reviewing mentors")  # includes the guard's count
    guard = MassChangeGuard(job.connection, today=job.today, allow=allow)
    guard.examine(organisation_id)
    service = CertificationManagementService(
        job.connection, today=job.today, run_id=job.run_id, guard=guard, stop=job.stop, on_progress=on_progress
    )
    report.review = service.counts
    service.apply_due(organisation_id)
    report.held = [hold.line for hold in guard.held.values()]


def deliver(job: Job, *, accept_date: date | None = None) -> DeliverReport:
    """Deliver due pushes and mail.

    If today's date is not trusted (see ``why_wrong_day``), send hides only.
    """
    report = DeliverReport(run_id=job.run_id, today=job.today)
    wrong_day = why_wrong_day(job.connection, job.today, zone=job.zone, accept_date=accept_date)

    def queue() -> None:
        """Queue digests only if a full run is overdue and no run is at work."""
        with database.transaction(job.connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
            is_missing = database.fetch_value(job.connection, "is_full_run_missing", {"today": job.today})
        if is_missing:
            queue_digests(job.connection, today=job.today)

    with recorded(job, report) as beating:
        _deliver(beating, report, queue=queue, wrong_day=wrong_day)
    return report


def retry_all(job: Job) -> RetryReport:
    """Make all open pushes due, also blocked ones, and push. Also make mail due, which the next delivery sends.

    If today's date is not trusted, send hides only, as ``deliver`` does.
    """
    report = RetryReport(run_id=job.run_id, today=job.today)
    wrong_day = why_wrong_day(job.connection, job.today, zone=job.zone, accept_date=None)
    with recorded(job, report) as beating:
        database.persist(job.connection, lambda: database.execute(job.connection, "forget_acknowledged_pushes"))
        report.reopened = PortalSyncService(job.connection, run_id=job.run_id).reopen_all()
        report.mail_reopened = reopen_reminders(job.connection) + reopen_digests(job.connection)
        push(beating, report, seconds=job.deadline_seconds, wrong_day=wrong_day)
    return report


def _deliver(job: Job, report: Report, *, queue: Callable[[], object], wrong_day: StageStop | None = None) -> None:
    """Push, then send reminders, then digests. ``queue`` queues the digests. Raises StoppedBySignalError."""
    ends_at = time.monotonic() + job.deadline_seconds
    try:
        push(job, report, seconds=job.deadline_seconds * PORTAL_SHARE, wrong_day=wrong_day)
        if wrong_day is None:
            _send_mail(job, report, queue=queue, ends_at=ends_at)
    except StoppedBySignalError:
        # The next run may be stopped, too, so the digests about this one are queued now.
        with contextlib.suppress(psycopg.Error, DatabaseUnavailableError):
            queue()
        raise


def push(job: Job, report: Report, *, seconds: float, wrong_day: StageStop | None = None) -> None:
    """Run the portal stage: review the due mentors with an open push, then push. Raises StoppedBySignalError.

    ``wrong_day`` is the reason why today's date is not trusted. Then only hides are sent, and no one is reviewed.
    """
    if wrong_day is None:
        with stage(job, report, "portal"):
            _review_open_pushes(job, report)
    else:
        report.stopped.append(wrong_day)
    with stage(job, report, "portal") as portal, Calls(job.stop) as calls:
        if job.make_portal is None:
            portal.ended = missing_portal(job)
            return
        portal.ended = deliver_pushes(
            PortalSyncService(job.connection, run_id=job.run_id),
            calls=calls,
            stop=job.stop,
            make_portal=job.make_portal,
            today=lambda: None if wrong_day else max(job.today, job.present_day()),
            counts=report.portal,
            deadline_seconds=seconds,
            on_progress=_phase(job, "Pushing to the portal", *PORTAL_KINDS),
        )


def _review_open_pushes(job: Job, report: Report) -> None:
    """Review the due mentors with an open push, with the guard, because their pushes may be outdated."""
    guard = MassChangeGuard(job.connection, today=job.today)
    service = CertificationManagementService(
        job.connection, today=job.today, run_id=job.run_id, guard=guard, stop=job.stop
    )
    try:
        service.apply_open_pushes()
    finally:  # after an error, too, because the next delivery does not report a stored hold
        if service.has_new_holds and not isinstance(report, RunReport):  # a run reports every hold itself
            report.held += [hold.line for hold in guard.held.values()]


def missing_portal(job: Job) -> StageStop | None:
    """Return that CERTJOB_PORTAL_URL is not set, if a push is open."""
    open_work = read_open_work(job.connection)
    if not any(open_work[kind].open for kind in PORTAL_KINDS):
        return None
    reason = "CERTJOB_PORTAL_URL is not set"  # alerts and digests have it for each open hide
    PortalSyncService(job.connection, run_id=job.run_id).record_stage_end(reason, end=StageEnd.NO_URL)
    return StageStop(stage="portal", code=StageEnd.NO_URL, reason=f"{reason}; the pushes stay pending")


def _send_mail(job: Job, report: Report, *, queue: Callable[[], object], ends_at: float) -> None:
    """Send reminders, then queue and send digests, because a digest reports the latest failures."""
    channel = job.channel
    if channel is None:
        with stage(job, report, "mail"):
            queue()
        with stage(job, report, "mail") as missing:
            missing.ended = _missing_channel(job)
        return
    templates = Templates(job.templates_dir) if job.templates_dir else OUR_TEMPLATES
    reminders = ReminderMail(job.connection, today=job.today, templates=templates)
    digests = DigestMail(
        job.connection,
        today=job.today,
        templates=templates,
        zone=job.zone,
        app_url=job.app_url,
        operator_address=job.operator_address,
    )
    with Calls(job.stop) as calls:
        send = partial(send_mails, channel=channel, calls=calls, stop=job.stop)
        try:
            with stage(job, report, "mail") as first:
                first.ended = send(
                    reminders,
                    counts=report.mail.reminders,
                    deadline_seconds=ends_at - time.monotonic(),
                    on_progress=_phase(job, "Sending reminders", "reminders"),
                )
            with stage(job, report, "mail"):
                queue()
            if first.ended is None or first.ended.code in ABOUT_REMINDERS_ALONE:
                with stage(job, report, "mail") as second:
                    second.ended = send(
                        digests,
                        counts=report.mail.digests,
                        deadline_seconds=ends_at - time.monotonic(),
                        on_progress=_phase(job, "Sending digests", "digests"),
                    )
        finally:
            calls.make(channel.close())
    if (problem := templates.problem()) is not None:
        report.stopped.append(problem)


def _missing_channel(job: Job) -> StageStop | None:
    if (problem := job.mail_problem) is not None:
        reason = f"{problem}; the mails stay pending"
        return StageStop(stage="mail", code=StageEnd.MISCONFIGURED, reason=reason, fault=str(problem))
    open_work = read_open_work(job.connection)
    if not any(open_work[kind].open for kind in MAIL_KINDS):
        return None
    reason = "CERTJOB_NOTIFY_URL is not set; the mails stay pending"
    return StageStop(stage="mail", code=StageEnd.NO_URL, reason=reason)


def _phase(job: Job, name: str, *kinds: str) -> Advance:
    """Begin a phase with the number of due rows of these kinds as its total."""

    def count() -> int:
        open_work = read_open_work(job.connection)
        return sum(open_work[kind].due for kind in kinds)

    return job.phase(name, count=count)


@dataclass(slots=True)
class Stage:
    """A stage that has begun."""

    ended: StageStop | None = None
    """Why it ended early, or None."""


@contextlib.contextmanager
def stage(job: Job, report: Report, name: str) -> Iterator[Stage]:
    """Run the block as a stage, and record why it ended early. A signal takes precedence as the reason."""
    begun = Stage()
    try:
        yield begun
        job.stop.check()
    except Exception as error:
        job.stop.check()
        if is_lost(error):
            raise
        if isinstance(error, (*CONTENTION, DatabaseUnavailableError)):
            begun.ended = StageStop(stage=name, code=StageEnd.LOCKED, reason=_LOCKED)
        else:
            begun.ended = _note_crash(job, report, name, error)
    if begun.ended is not None and begun.ended not in report.stopped:
        report.stopped.append(begun.ended)


def _note_crash(job: Job, report: Report, name: str, error: Exception) -> StageStop:
    """Record an unexpected error: the run has failed."""
    logger.debug("the %s stage crashed", name, exc_info=error)
    report.crashed = True
    # The DETAIL of a database error is left out, because it has names and addresses.
    text = (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)
    reason = f"unforeseen {type(error).__name__}: {without_people(text)}"
    if name == "portal":
        with contextlib.suppress(psycopg.Error):  # the database may have caused the crash
            PortalSyncService(job.connection, run_id=job.run_id).record_stage_end(reason, end=StageEnd.CRASH)
    return StageStop(stage=name, code=StageEnd.CRASH, reason=reason)
