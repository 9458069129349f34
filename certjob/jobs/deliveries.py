"""The deliveries of a run: the portal first, then reminders, then digests."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID, uuid4

import psycopg

from certjob import database
from certjob.database import CONTENTION, Connection, is_lost
from certjob.errors import ConfigurationError, DatabaseUnavailableError, StageEnd, StoppedBySignalError
from certjob.jobs.report import MailResult, Report
from certjob.mail.digests import DigestMail, queue_digests
from certjob.mail.message import Channel
from certjob.mail.messages.templates import Templates
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.stage import MailCounts, send_mails
from certjob.mail.steps import Mails
from certjob.outbox.calls import Calls
from certjob.outbox.claims import StageStop
from certjob.outbox.open_work import MAIL_KINDS, PORTAL_KINDS, read_open_work
from certjob.outbox.retry import RetryPolicy
from certjob.portal.push import PORTAL_POLICY
from certjob.portal.stage import CONCURRENCY, LONGEST_PAUSE_SECONDS, deliver_pushes
from certjob.portal.sync import PortalSyncService
from certjob.redaction import without_people
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag

if TYPE_CHECKING:
    from certjob.portal.hlf_dynamics import HLFDynamicsSyncService  # httpx: 50 ms

logger = logging.getLogger(__name__)

RUN_SECONDS = 40 * 60.0
"""Time for the deliveries of a full run. The crontab ends the run after 55 minutes."""

DELIVER_SECONDS = 10 * 60.0
"""Time for the deliveries of any other command. The crontab ends `certjob deliver` after 14 minutes."""

PORTAL_SHARE = 0.75
"""The portal's share of this time. The rest is reserved for mail if the portal is slow."""

ABOUT_REMINDERS_ALONE = frozenset({StageEnd.ALL_REFUSED, StageEnd.CRASH})
"""Ends of the reminder stage that need not be the mail server's fault. Digests are still sent, and report them."""

_LOCK_TIMEOUT_MS = 10_000
_LOCKED = "a table or a row is locked by another database session; end that session; the rest stays pending"


class Progress(Protocol):
    """Shows the progress of each phase."""

    def phase(self, name: str, *, count: Callable[[], int] | None = None) -> Callable[[int], None]:
        """Begin a phase and return the function that takes the number done; ``count`` returns the total."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The portal, the mail channel, and the settings of a delivery."""

    make_portal: "Callable[[], HLFDynamicsSyncService] | None"
    """Returns the portal's client. None: CERTJOB_PORTAL_URL is not set."""
    channel: Channel | None = None
    """None: CERTJOB_NOTIFY_URL is not set, or ``mail_problem``."""
    mail_problem: ConfigurationError | None = None
    """The wrong settings because of which no mail can be sent."""
    mail_waits_until: Callable[[], datetime | None] = lambda: None
    """Returns when mail may be sent, or None if it may be sent now."""
    templates_dir: Path | None = None
    app_url: str = ""
    """The address of the app, to which digests link."""
    operator_address: str = ""
    """The e-mail address of the operators, which digests name."""
    zone: tzinfo = UTC
    today: Callable[[], date] = lambda: date.min
    """Returns the present day. After midnight a run sends no show that was true only on the day before."""
    policy: RetryPolicy = PORTAL_POLICY
    concurrency: int = CONCURRENCY
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS
    deadline_seconds: float = DELIVER_SECONDS


class NoProgress:
    """Shows nothing."""

    def phase(self, name: str, *, count: Callable[[], int] | None = None) -> Callable[[int], None]:
        """Begin a phase; see ``Progress``."""
        return lambda _done: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every job needs."""

    connection: Connection
    today: date
    delivery: Delivery
    stop: StopFlag
    progress: Progress = field(default_factory=NoProgress)
    run_id: UUID = field(default_factory=uuid4)


@dataclass(slots=True)
class Stage:
    """A stage that has begun."""

    ended: StageStop | None = None
    """Why it ended early, or None."""


class Deliveries:
    """The stages of one run, one after the other. A failed stage does not prevent the next one."""

    def __init__(
        self,
        job: Job,
        report: Report,
        *,
        organisation_id: UUID | None = None,
        after_review: bool = False,
        wrong_day: StageStop | None = None,
    ) -> None:
        """Record results in ``report``. Digests are queued for one organisation (``organisation_id``) or for all.

        ``after_review``: this run has reviewed the due mentors, and reports every hold itself. ``wrong_day`` is the
        reason why today's date is not trusted; then only hides are sent, and no one is reviewed.
        """
        self._job = job
        self._connection = job.connection
        self._report = report
        self._delivery = job.delivery
        self._stop = job.stop
        self._organisation_id = organisation_id
        self._service = PortalSyncService(job.connection, run_id=job.run_id)
        self._after_review = after_review
        self._wrong_day = wrong_day
        if wrong_day is not None:
            report.stopped.append(wrong_day)

    def deliver(self, mail: MailResult) -> None:
        """Push, then send reminders, then digests, and count them in ``mail``. Raises StoppedBySignalError."""
        ends_at = time.monotonic() + self._delivery.deadline_seconds
        try:
            with Calls(self._stop) as calls:
                self._push(calls, seconds=self._delivery.deadline_seconds * PORTAL_SHARE)
                if self._wrong_day is None:
                    self._send_mail(calls, mail, ends_at=ends_at)
        except StoppedBySignalError:
            # The next run may be stopped, too, so the digests about this one are queued now.
            with contextlib.suppress(psycopg.Error, DatabaseUnavailableError):
                self.queue_digests()
            raise

    def push(self) -> None:
        """Run the portal stage only. Raises StoppedBySignalError after a signal."""
        with Calls(self._stop) as calls:
            self._push(calls, seconds=self._delivery.deadline_seconds)

    def queue_digests(self) -> None:
        """Queue the coordinators' digests after a review. A delivery queues them only if a full run is overdue."""
        if not self._after_review:
            with database.transaction(self._connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
                if not database.fetch_value(self._connection, "is_full_run_overdue", {"today": self._report.today}):
                    return
        queue_digests(self._connection, today=self._report.today, organisation_id=self._organisation_id)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run the block as a stage, and record why it ended early. A signal takes precedence as the reason."""
        stage = Stage()
        try:
            yield stage
            self._stop.check()
        except Exception as error:
            self._stop.check()
            if is_lost(error):
                raise
            if isinstance(error, (*CONTENTION, DatabaseUnavailableError)):
                stage.ended = StageStop(stage=name, code=StageEnd.LOCKED, reason=_LOCKED)
            else:
                stage.ended = self._note_crash(name, error)
        if stage.ended is not None and stage.ended not in self._report.stopped:
            self._report.stopped.append(stage.ended)

    def _note_crash(self, name: str, error: Exception) -> StageStop:
        """Record an unexpected error: the run has failed."""
        logger.debug("the %s stage crashed", name, exc_info=error, extra={"event": "stage_crashed"})
        self._report.crashed = True
        # The DETAIL of a database error is left out, because it has names and addresses.
        text = (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)
        reason = f"unforeseen {type(error).__name__}: {without_people(text)}"
        if name == "portal":
            with contextlib.suppress(psycopg.Error):  # the database may have caused the crash
                self._service.record_stage_end(reason, end=StageEnd.CRASH)
        return StageStop(stage=name, code=StageEnd.CRASH, reason=reason)

    def _push(self, calls: Calls, *, seconds: float) -> None:
        if self._wrong_day is None:
            with self.stage("portal"):
                self._review_open_pushes()
        with self.stage("portal") as stage:
            delivery, report = self._delivery, self._report
            if delivery.make_portal is None:
                stage.ended = self.missing_portal()
                return
            stage.ended = deliver_pushes(
                self._service,
                calls=calls,
                stop=self._stop,
                make_portal=delivery.make_portal,
                policy=delivery.policy,
                today=lambda: None if self._wrong_day else max(report.today, delivery.today()),
                counts=report.portal,
                deadline_seconds=seconds,
                concurrency=delivery.concurrency,
                longest_pause_seconds=delivery.longest_pause_seconds,
                on_progress=self._phase("Pushing to the portal", *PORTAL_KINDS),
            )

    def _review_open_pushes(self) -> None:
        """Review the due mentors with an open push, with the guard, because their pushes may be outdated."""
        guard = MassChangeGuard(self._connection, today=self._report.today, run_id=self._report.run_id)
        service = CertificationManagementService(
            self._connection, today=self._report.today, run_id=self._report.run_id, guard=guard, stop=self._stop
        )
        try:
            service.apply_open_pushes()
        finally:  # after an error, too, because the next delivery does not report a stored hold
            if not self._after_review:
                self._report.held += service.new_holds

    def _phase(self, name: str, *kinds: str) -> Callable[[int], None]:
        """Begin a phase with the number of due rows of these kinds as its total."""

        def count() -> int:
            open_work = read_open_work(self._connection)
            return sum(open_work[kind].due for kind in kinds)

        return self._job.progress.phase(name, count=count)

    def missing_portal(self) -> StageStop | None:
        """Return that CERTJOB_PORTAL_URL is not set, if a push is open."""
        open_work = read_open_work(self._connection)
        if not any(open_work[kind].open for kind in PORTAL_KINDS):
            return None
        reason = "CERTJOB_PORTAL_URL is not set"  # alerts and digests have it for each open hide
        self._service.record_stage_end(reason, end=StageEnd.NO_URL)
        return StageStop(stage="portal", code=StageEnd.NO_URL, reason=f"{reason}; the pushes stay pending")

    def _send_mail(self, calls: Calls, mail: MailResult, *, ends_at: float) -> None:
        """Send reminders, then digests, because a digest reports the latest failures."""
        connection, report, delivery = self._connection, self._report, self._delivery
        channel = delivery.channel
        if channel is None:
            with self.stage("mail"):
                self.queue_digests()
            with self.stage("mail") as stage:
                stage.ended = self._missing_channel()
            return
        templates = Templates(delivery.templates_dir)
        reminders = ReminderMail(connection, today=report.today, templates=templates)
        digests = DigestMail(
            connection,
            today=report.today,
            zone=delivery.zone,
            app_url=delivery.app_url,
            operator_address=delivery.operator_address,
            templates=templates,
        )
        try:
            with self.stage("mail") as first:
                first.ended = self._send(reminders, mail.reminders, "reminders", channel, calls, ends_at=ends_at)
            with self.stage("mail"):
                self.queue_digests()
            if first.ended is None or first.ended.code in ABOUT_REMINDERS_ALONE:
                with self.stage("mail") as second:
                    second.ended = self._send(digests, mail.digests, "digests", channel, calls, ends_at=ends_at)
        finally:
            calls.make(channel.close())
        if (problem := templates.problem()) is not None:
            report.stopped.append(problem)
        mail.waits_until = delivery.mail_waits_until()
        if mail.waits_until is not None:
            logger.info("mail waits until %s", mail.waits_until, extra={"event": "mail_waits"})

    def _send(
        self, mails: Mails[Any, Any], counts: MailCounts, kind: str, channel: Channel, calls: Calls, *, ends_at: float
    ) -> StageStop | None:
        return send_mails(
            mails,
            channel=channel,
            calls=calls,
            stop=self._stop,
            counts=counts,
            deadline_seconds=ends_at - time.monotonic(),
            on_progress=self._phase(f"Sending {kind}", kind),
            is_open=lambda: self._delivery.mail_waits_until() is None,
        )

    def _missing_channel(self) -> StageStop | None:
        if (problem := self._delivery.mail_problem) is not None:
            reason = f"{problem}; the mails stay pending"
            return StageStop(stage="mail", code=StageEnd.MISCONFIGURED, reason=reason, fault=str(problem))
        open_work = read_open_work(self._connection)
        if not any(open_work[kind].open for kind in MAIL_KINDS):
            return None
        return StageStop(
            stage="mail", code=StageEnd.NO_URL, reason="CERTJOB_NOTIFY_URL is not set; the mails stay pending"
        )
