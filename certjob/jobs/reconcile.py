"""``certjob reconcile``: read the contacts that the portal shows, and push the differences."""

from collections import Counter
from collections.abc import Mapping
from datetime import date
from uuid import UUID

from certjob import database
from certjob.errors import ConfigurationError, PortalCallError, StageEnd
from certjob.facts.lookup import find_organisation
from certjob.jobs.job import Job
from certjob.jobs.job_runs import recorded
from certjob.jobs.report import ReconcileReport
from certjob.jobs.runs import push
from certjob.outbox.calls import Calls
from certjob.outbox.claims import StageStop
from certjob.outbox.open_work import read_open_work
from certjob.portal import comparison
from certjob.portal.comparison import Comparison, Reading
from certjob.portal.hlf_dynamics import VisiblePage
from certjob.portal.push import PORTAL_POLICY
from certjob.review.days import reject_wrong_day


def reconcile(
    job: Job,
    *,
    dry_run: bool = False,
    allow: Mapping[str, int] = Counter(),
    accept_date: date | None = None,
) -> ReconcileReport:
    """Read the portal, compare it with the database, queue a push for each difference, and push.

    If a page cannot be read, no contact is changed and the report has the reason. A dry run only reads. Raises
    ConfigurationError for an unknown organisation, the errors of ``reject_wrong_day``, and StoppedBySignalError after a
    signal.
    """
    connection, today, run_id = job.connection, job.today, job.run_id
    for slug in allow:
        find_organisation(connection, slug)
    reject_wrong_day(connection, today, zone=job.zone, accept_date=accept_date)
    report = ReconcileReport(run_id=run_id, today=today, dry_run=dry_run)

    def compare(job: Job) -> Comparison | None:
        reading = _read(job, report)
        if reading is not None:
            report.comparison = comparison.compare(connection, reading, today=today, allow=allow)
            report.held = [hold.line for hold in report.comparison.held]
        return report.comparison

    if dry_run:
        compare(job)
        with database.read_only_snapshot(connection):
            report.open_work = read_open_work(connection)
        return report
    with recorded(job, report) as beating:
        found = compare(beating)
        if found is not None:
            comparison.store(connection, found)
            comparison.raise_events(connection, found, today=today, run_id=run_id, stop=job.stop)
            push(beating, report, seconds=job.deadline_seconds)
    return report


def _read(job: Job, report: ReconcileReport) -> Reading | None:
    """Read all pages, or return None and add the reason to the report."""
    make_portal, stop = job.make_portal, job.stop
    if make_portal is None:
        message = "CERTJOB_PORTAL_URL is not set, so certjob cannot read the portal"
        raise ConfigurationError(message)
    read_at = database.clock(job.connection)
    advance = job.phase("Reading the portal")
    pages: list[VisiblePage] = []
    days: dict[UUID, date | None] = {}

    async def read() -> None:
        async with make_portal() as portal:
            async for page in portal.read_visible_contacts(policy=PORTAL_POLICY):
                stop.check()
                pages.append(page)
                days.update(page.visible_until)
                advance(len(days))

    try:
        with Calls(stop) as calls:
            calls.make(read())
    except PortalCallError as error:
        stop.check()
        reason = f"{error}; the portal was not read to its end, so no contact was compared or changed"
        report.stopped.append(StageStop(stage="portal", code=StageEnd.NOT_READ, reason=reason))
        return None
    if isinstance(pages[0].secret_until, str):
        reason = "AZURE_CLIENT_SECRET_UNTIL of the function is not a day such as 2027-03-10; correct it"
        report.stopped.append(StageStop(stage="client secret", code=StageEnd.MISCONFIGURED, reason=reason))
    return Reading(
        read_at=read_at,
        pages=len(pages),
        visible_until=dict(sorted(days.items())),
        dates=all(page.dates for page in pages),
        secret_until=pages[0].secret_until,
    )
