"""The ledger of runs: each run has one row in ``job_runs``, from its beginning to its end."""

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from certjob import __version__, database
from certjob.database import Connection
from certjob.domain.alert_kinds import Kind
from certjob.errors import CertjobError, DatabaseUnavailableError, Outcome, StageEnd
from certjob.jobs.job import Advance, Job
from certjob.jobs.report import DeliverReport, ReconcileReport, Report, RunReport
from certjob.outbox.claims import StageStop
from certjob.outbox.open_work import read_open_work
from certjob.redaction import printed_line, without_secrets
from certjob.review.attention import Count, read_attention
from certjob.review.days import looks_at_everybody, make_everybody_due

logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0

_LOCK_TIMEOUT_MS = 30_000
_NOT_READ = "a table or a row is locked by another database session; end that session, then see `certjob alerts`"


class Heartbeat:
    """Shows phases, and records in the row that the run is alive, every 15 seconds."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._next_at = 0.0

    def phase(self, name: str, *, count: Callable[[], int] | None = None) -> Advance:
        """Begin a phase; see ``Job.phase``."""
        show = self._job.phase(name, count=count)
        logger.info("%s", name)
        self._next_at = 0.0
        self._beat()

        def advance(done: int) -> None:
            show(done)
            self._beat()

        return advance

    def _beat(self) -> None:
        connection = self._job.connection
        if time.monotonic() < self._next_at or connection.info.transaction_status != TransactionStatus.IDLE:
            return
        self._next_at = time.monotonic() + BEAT_SECONDS
        with suppress(psycopg.Error):  # the run's next statement reports the error
            database.execute(connection, "touch_job_run", {"id": self._job.run_id})


@contextmanager
def recorded(
    job: Job,
    report: Report,
    *,
    organisation: str | None = None,
    organisation_id: UUID | None = None,
    everybody: bool = False,
) -> Iterator[Job]:
    """Write the run's row at the beginning and at the end, also after an error; yield the job with a heartbeat.

    In a run after one on a later date, or if the caller asks for it, all mentors become due first.
    """
    connection = job.connection
    begun = {"command": report.command, "today": str(report.today), "host": platform.node() or "unknown"}
    row = begun | {"id": report.run_id, "organisation": organisation, "version": __version__}
    try:
        with database.transaction(connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
            everybody = everybody or (isinstance(report, RunReport) and looks_at_everybody(connection, report.today))
            database.execute(connection, "start_job_run", row)
            if everybody:
                make_everybody_due(connection, organisation_id)
    except database.CONTENTION as error:
        message = "another session has locked the table job_runs"
        if everybody:
            message = "all mentors must be reviewed, but another session has locked some of them"
        raise DatabaseUnavailableError(message, next_step="end that session and run again") from error
    logger.info("the run has begun", extra={"run_id": str(report.run_id)} | begun)
    try:
        yield replace(job, phase=Heartbeat(job).phase)
        try:
            with database.transaction(connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
                report.open_work = read_open_work(connection)
                if isinstance(report, RunReport | DeliverReport | ReconcileReport):
                    _read_alerts(connection, report, is_full_run=report.command == "run" and organisation is None)
        except database.CONTENTION:
            report.stopped.append(StageStop(stage="alerts", code=StageEnd.LOCKED, reason=_NOT_READ))
    except BaseException as error:
        # The text of an unexpected error may quote data about people.
        reason = str(error) if isinstance(error, CertjobError) else f"unforeseen {type(error).__name__}"
        try:
            _record_end(connection, report, Outcome.FAILED, lines=[reason])
        except (psycopg.Error, DatabaseUnavailableError):  # the database caused the error
            logger.info("the end of the run could not be recorded")
        raise
    database.persist(connection, lambda: _record_end(connection, report, report.outcome, lines=report.lines()))


def _read_alerts(
    connection: Connection, report: RunReport | DeliverReport | ReconcileReport, *, is_full_run: bool
) -> None:
    """Add the printed lines of this day's commands, and the alerts. The first full run prints everything."""
    printed = database.fetch(connection, "read_told", {"today": report.today})
    if not (is_full_run and not any(is_full for _, is_full in printed)):
        report.told = frozenset(key for keys, _ in printed for key in keys)
    if isinstance(report, ReconcileReport):
        return
    attention = read_attention(connection, today=report.today)
    if isinstance(report, DeliverReport):
        report.overdue = dict.fromkeys(attention.keys(Kind.NO_FULL_RUN), attention.overdue)
        return
    if is_full_run and not report.crashed:  # it ends now
        attention = replace(attention, counts={**attention.counts, Kind.NO_FULL_RUN: Count()}, overdue="")
    report.attention = attention
    report.held = list(attention.held)
    if is_full_run:
        report.confirmed = [
            f"{slug}: {member_no} was hidden by hand, as user {who} said on {at:%Y-%m-%d}; see `certjob explain`"
            for slug, member_no, who, at in database.fetch(connection, "read_confirmed_by_coordinators")
        ]


def _record_end(connection: Connection, report: Report, outcome: Outcome, *, lines: Sequence[str]) -> None:
    counts = report.to_counts()
    stored = dict(counts)
    stored |= {f"{stop.stage}_stop": stop.reason for stop in report.stopped if stop.stage in ("portal", "mail")}
    safe_lines = [without_secrets(printed_line(line)) for line in lines]
    parameters = {"id": report.run_id, "outcome": outcome, "counts": json.dumps(stored), "lines": safe_lines}
    database.execute(connection, "finish_job_run", parameters)
    about = {"outcome": str(outcome), "duration_seconds": report.duration_seconds}
    logger.info("the run has ended", extra=about | counts)


def note_told(connection: Connection, report: Report) -> None:
    """Record that the lines of a command were printed. Later ones of the day do not repeat them."""
    with suppress(psycopg.Error), database.transaction(connection):  # the next run prints them again
        database.execute(connection, "note_told", {"id": report.run_id, "keys": report.keys()})
