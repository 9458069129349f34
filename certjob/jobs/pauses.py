"""``certjob pause`` and ``certjob unpause``: a person's pause of one mentor, with an immediate push."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import Connection
from certjob.domain import explanations, rules
from certjob.domain.models import OWN_PAUSE_REASON, PauseChange
from certjob.errors import BrokenMentorError, CertjobError, DatabaseError, MentorBusyError, UsageError
from certjob.facts import reading
from certjob.jobs.acknowledge import user_name
from certjob.jobs.job import Job
from certjob.jobs.job_runs import recorded
from certjob.jobs.report import ResyncReport
from certjob.jobs.resync import MentorState, PauseDone, Resync, describe, push_now, review_now
from certjob.portal.sync import PortalSyncService, Wish
from certjob.redaction import printed_line, without_people
from certjob.review.days import reject_wrong_day

LOCK_WAIT_MS = 10_000
"""How long to wait for another session that has locked the mentor."""
_LONGEST_REASON = 200
"""Characters, as in the schema."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenPause:
    id: UUID
    reason: str
    actor: str
    since: str


def pause(job: Job, mentor_id: UUID, *, because: str, accept_date: date | None = None) -> Resync:
    """Open a pause and queue the hide in one commit, then review the mentor and push.

    No error of the review prevents the push of the hide; ``not_reviewed`` has it. Raises UsageError for a reason
    that no person may give, and MentorBusyError, without a pause, if another session kept the mentor locked.
    """
    connection, by, reason = job.connection, f"cli:{user_name()}", printed_line(because)
    if not 0 < len(reason) <= _LONGEST_REASON or reason == OWN_PAUSE_REASON:
        message = f"--because is not a text of at most {_LONGEST_REASON} characters, or is certjob's own reason"
        raise UsageError(message, next_step="say why the mentor may not take assignments")
    before = describe(connection, mentor_id)

    def write() -> bool:
        database.execute(connection, "lock_mentor", {"id": mentor_id})
        opened = {"mentor_id": mentor_id, "because": reason, "by": by}
        is_new = database.execute(connection, "open_pause", opened) == 1
        if database.execute(connection, "want_hidden", {"mentor_id": mentor_id}):
            PortalSyncService(connection, run_id=job.run_id).queue([Wish(mentor_id=mentor_id, visible=False)])
        return is_new

    not_done = f"{before.member_no} was NOT paused and may still be visible"
    with _explained(not_done, next_step="try again; if it is urgent, hide the contact by hand"):
        is_new = database.persist(connection, write, lock_timeout_ms=LOCK_WAIT_MS)
    done = PauseDone(reason=reason, by=by, is_new=is_new)
    return _apply(job, mentor_id, command="pause", before=before, pause=done, accept_date=accept_date)


def unpause(job: Job, mentor_id: UUID, *, reason: str | None = None, accept_date: date | None = None) -> Resync:
    """Lift an open pause, then review the mentor and push.

    certjob's own pause is lifted only if the rules would not open it again. Raises UsageError if there is no such
    pause, several are open and ``reason`` is None, or a certificate is needed, and MentorBusyError if another session
    kept the mentor locked. An error of the review is in ``not_reviewed``, because the pause is lifted then.
    """
    connection, by = job.connection, f"cli:{user_name()}"
    reject_wrong_day(connection, job.today, zone=job.zone, accept_date=accept_date)
    before = describe(connection, mentor_id)

    def write() -> _OpenPause:
        database.execute(connection, "lock_mentor", {"id": mentor_id})
        chosen = _choose(connection, before.member_no, mentor_id, reason=reason)
        if chosen.reason == OWN_PAUSE_REASON:
            _require_certificates(connection, mentor_id, today=job.today)
        database.execute(connection, "lift_pause", {"pause_id": chosen.id, "by": by})
        return chosen

    with _explained(f"the pause of {before.member_no} was not lifted", next_step="try again"):
        lifted = database.persist(connection, write, lock_timeout_ms=LOCK_WAIT_MS)
    done = PauseDone(reason=lifted.reason, by=by, is_new=True)
    return _apply(job, mentor_id, command="unpause", before=before, pause=done, accept_date=accept_date)


def _apply(
    job: Job, mentor_id: UUID, *, command: str, before: MentorState, pause: PauseDone, accept_date: date | None
) -> Resync:
    """Review the mentor and push, although the review may fail, because the pause is stored."""
    report = ResyncReport(command=command, run_id=job.run_id, today=job.today)
    with recorded(job, report) as beating:
        not_reviewed = _review(beating, report, mentor_id, accept_date=accept_date)
        error = push_now(beating, report, mentor_id)
    after = describe(job.connection, mentor_id)
    return Resync(report=report, before=before, after=after, error=error, pause=pause, not_reviewed=not_reviewed)


def _review(job: Job, report: ResyncReport, mentor_id: UUID, *, accept_date: date | None) -> CertjobError | None:
    """Review the mentor, and return why this failed, or None. Raises if the database is lost, or after a signal."""
    later = "the next run reviews the mentor"
    try:
        reject_wrong_day(job.connection, job.today, zone=job.zone, accept_date=accept_date)
        review_now(job, report, mentor_id)
    except CertjobError as error:
        if job.stop.is_set():
            raise
        if isinstance(error, MentorBusyError):
            error.next_step = later
        return error
    except psycopg.Error as error:
        if job.stop.is_set() or database.is_lost(error):
            raise
        text = without_people(error.diag.message_primary or type(error).__name__)
        return DatabaseError(f"the database rejected a statement: {text}", next_step=later)
    return _broken(mentor_id, report.review.broken)


def _broken(mentor_id: UUID, broken: Mapping[UUID, str]) -> BrokenMentorError | None:
    if mentor_id not in broken:
        return None
    return BrokenMentorError(f"mentor {mentor_id} could not be processed: {broken[mentor_id]}")


@contextmanager
def _explained(not_done: str, *, next_step: str) -> Iterator[None]:
    """Replace the error of a lock by MentorBusyError, which says that the change is not stored."""
    try:
        yield
    except database.CONTENTION as error:
        message = f"{not_done}: another session, for example of the app, has locked the mentor"
        raise MentorBusyError(message, next_step=next_step) from error


def _choose(connection: Connection, member_no: str, mentor_id: UUID, *, reason: str | None) -> _OpenPause:
    """Return the open pause with this reason, also as it is printed, or the only one. Raises UsageError with a list."""
    found = database.fetch(connection, "list_open_pauses", {"mentor_id": mentor_id}, into=_OpenPause)
    exact = [each for each in found if reason in (None, each.reason)]
    chosen = exact or [each for each in found if printed_line(each.reason) == printed_line(reason or "")]
    if len(chosen) == 1:
        return chosen[0]
    if not found:
        message = f"{member_no} has no open pause"
        raise UsageError(message, next_step="see `certjob explain MENTOR`")
    listed = "; ".join(f"{each.reason} (by {each.actor} since {each.since})" for each in found)
    message = f"{member_no} has {'no such open pause, but' if reason else 'several open pauses:'} {listed}"
    raise UsageError(message, next_step="give its text with --reason")


def _require_certificates(connection: Connection, mentor_id: UUID, *, today: date) -> None:
    """Raise UsageError if the rules would open certjob's pause again."""
    read = reading.read(connection, [mentor_id], lock=False)
    error = _broken(mentor_id, read.broken)
    if error is not None:
        raise error
    (mentor,) = read.mentors
    others = tuple(each for each in mentor.open_pauses if each.reason != OWN_PAUSE_REASON)
    if rules.decide(replace(mentor, open_pauses=others, left=False), today).pause is PauseChange.OPEN:
        why = "; ".join(explanations.why_certified(mentor, today))
        message = f"certjob would pause {mentor.member_no} again: {why}"
        raise UsageError(message, next_step="enter a certificate; the next run then lifts the pause")
