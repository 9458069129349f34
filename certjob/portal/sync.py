"""The saga of portal visibility: queue a wish, push it, settle it, and keep every unfinished push visible.

Our state is never rolled back because the portal failed. An event is delivered, withdrawn (its organisation lost the
portal), or open and visible as an alert.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from certjob import database
from certjob.database import persist
from certjob.errors import DynamicsSyncException, FailureCode, PermanentPortalError, PortalStageError
from certjob.outbox.claims import ANY_ATTEMPTS, Answer, Lease, Outbox, Settlement
from certjob.portal.push import FIRST_ROUND_DELAY_SECONDS, PortalEvent, Push, asked_to_wait, round_delay_seconds
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

LEASE_SECONDS = 300.0
LATE_FAILURES_SECONDS = 10.0
_LATE_POLL_SECONDS = 0.5
_RELEASE_TRIES = 5
_RELEASE_POLL_SECONDS = 0.1


@dataclass(slots=True, kw_only=True)
class PortalCounts:
    """What a stage did, for the report."""

    delivered: int = 0
    failed: int = 0
    lost: int = 0
    newly_blocked: int = 0
    errors: list[DynamicsSyncException] = field(default_factory=list)


class PortalSyncService:
    """Everything that is written about portal events; the calls themselves are made without it, in any thread."""

    def __init__(self, connection: database.Connection, *, run_id: UUID, lease_seconds: float = LEASE_SECONDS) -> None:
        self._connection = connection
        self._run_id = run_id
        self._outbox = Outbox(
            connection,
            table="portal_events",
            item=PortalEvent,
            lease_seconds=lease_seconds,
            columns=("ids", "tokens", "versions", "statuses", "delays", "uncounts", "errors", "codes"),
            skips_held=True,
            keeps_contacts=True,
        )
        self._held: dict[int, Push] = {}  # not settled yet: another session held the event
        self._late: dict[int, Push] = {}  # failures without their row: another session held the mentor

    def queue(self, wishes: Sequence[tuple[UUID, bool]]) -> int:
        """Queue (mentor, wanted visibility) inside the caller's transaction; an open event is replaced."""
        return len(self._queue(wishes)) if wishes else 0

    def force(self, mentor_id: UUID, *, visible: bool) -> tuple[int, int]:
        """Reopen or insert one mentor's event inside the caller's transaction; return its id and version."""
        event_id, _, version = self._queue([(mentor_id, visible)])[0]
        return event_id, version

    def reopen_all(self) -> int:
        """Make every open event due now, blocked ones too, committed on return; return how many there are."""
        parameters = {"run_id": self._run_id}
        return persist(self._connection, lambda: database.execute(self._connection, "reopen_portal_events", parameters))

    def read_event(self, event_id: int) -> tuple[str, int] | None:
        """Return an event's status and version; None: it is gone, with its mentor."""
        rows = database.fetch(self._connection, "read_portal_event", {"id": event_id})
        return (rows[0][0], rows[0][1]) if rows else None

    def count_backlog(self) -> tuple[int, int, int]:
        """Return how many events are pending, how many are blocked, and how many of both are alerts."""
        pending, blocked, alerts = database.fetch(self._connection, "count_portal_backlog")[0]
        return pending, blocked, alerts

    def count_unreached(self, *, since: datetime) -> int:
        """Return how many of the events that ``reopen_all`` reopened at ``since`` nobody has tried yet."""
        parameters = {"run_id": self._run_id, "started_at": since}
        number: int = database.fetch_value(self._connection, "count_unreached_events", parameters)
        return number

    def withdraw(self, mentor_ids: Sequence[UUID]) -> dict[UUID, bool]:
        """Withdraw what is open for mentors of organisations without a portal, inside the caller's transaction.

        Returns the mentors for whom something was open, each with whether they moved here to be hidden: the portal of
        the organisation they came from may go on showing them.
        """
        if not mentor_ids:
            return {}
        rows = database.fetch(self._connection, "withdraw_portal_events", {"mentor_ids": list(mentor_ids)})
        withdrawn: dict[UUID, bool] = dict(rows)
        if withdrawn:
            self._resolve(sorted(withdrawn))
        return withdrawn

    def claim(self, *, limit: int = 100, attempts_below: int = ANY_ATTEMPTS) -> tuple[list[PortalEvent], Lease]:
        """Claim due events: hides before shows, untried before retried; none with so many rounds behind it."""
        return self._outbox.claim(limit=limit, attempts_below=attempts_below)

    def claim_mentor(self, mentor_id: UUID) -> tuple[PortalEvent | None, Lease]:
        """Claim one mentor's open event whatever its retry time; None while another run holds it (or none is open)."""
        events, lease = self._outbox.claim_by("lock_portal_event", {"mentor_id": mentor_id})
        return (events[0] if events else None), lease

    def find_current(self, events: Sequence[PortalEvent]) -> set[int]:
        """Return the ids of those claimed events that are still to be pushed as they were claimed."""
        rows = database.fetch(
            self._connection,
            "find_current_events",
            {
                "ids": [event.id for event in events],
                "tokens": [event.claim_token for event in events],
                "versions": [event.version for event in events],
            },
        )
        return {row[0] for row in rows}

    def release(self, events: Sequence[PortalEvent]) -> None:
        """Give claimed events back; their attempts were none. One whose row stays held keeps its lease."""
        left = list(events)
        for _ in range(_RELEASE_TRIES):
            answers = self._outbox.release(left)
            left = [event for event in left if answers[event.id] is Answer.HELD]
            if not left:
                return
            time.sleep(_RELEASE_POLL_SECONDS)

    def settle(self, pushes: Sequence[Push], counts: PortalCounts) -> dict[int, Answer]:
        """Write what became of claimed events, their failure rows and resolutions in one transaction; count it."""
        pushes = list((self._held | {push.event.id: push for push in pushes}).values())
        kept_back = self._late

        def record(answers: dict[int, Answer]) -> None:
            nonlocal kept_back
            settled = [push for push in pushes if answers[push.event.id] is Answer.SETTLED]
            kept_back = self._record_failures(self._late | {p.event.id: p for p in settled if _is_failure(p)})
            done = [push.event.mentor_id for push in settled if push.error is None and push.begun]
            if done:
                self._resolve(sorted(done))

        answers = self._outbox.settle([_settlement(push) for push in pushes], then=record)
        self._late = kept_back
        self._held = {push.event.id: push for push in pushes if answers[push.event.id] is Answer.HELD}
        for push in pushes:
            self._count(push, answers[push.event.id], counts)
            if logger.isEnabledFor(logging.DEBUG):
                _log(push, answers[push.event.id])
        return answers

    def record_late(self, stop: StopFlag, counts: PortalCounts, *, wait_seconds: float | None = None) -> None:
        """Write what another session's locks kept back, outcomes and failure rows, waiting for it so long.

        An event that is still held then keeps its lease, and is pushed again after it. A failure without its row is an
        alert an hour after the wish, and gets its row with the next failure.
        """
        give_up_at = time.monotonic() + (LATE_FAILURES_SECONDS if wait_seconds is None else wait_seconds)
        while self._late or self._held:
            if self._held:
                self.settle([], counts)
            else:
                self._late = persist(self._connection, lambda: self._record_failures(self._late))
            if not (self._late or self._held) or stop.is_set() or time.monotonic() >= give_up_at:
                return
            stop.wait(_LATE_POLL_SECONDS)

    def record_stage_end(
        self,
        reason: str,
        *,
        code: FailureCode,
        mentor_id: UUID | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Give every open hide (or one mentor's) without one a failure row: nothing waits unseen after an early end.

        ``correlation_id`` is that of the answer which ended the stage, if one did.
        """
        parameters = {"error": reason, "code": code, "mentor_id": mentor_id, "correlation_id": correlation_id}
        persist(self._connection, lambda: database.execute(self._connection, "record_stage_failures", parameters))

    def _queue(self, wishes: Sequence[tuple[UUID, bool]]) -> list[tuple[int, UUID, int]]:
        return database.fetch(
            self._connection,
            "queue_portal_events",
            {
                "mentor_ids": [mentor_id for mentor_id, _ in wishes],
                "visible": [visible for _, visible in wishes],
                "run_id": self._run_id,
            },
        )

    def _record_failures(self, failed: dict[int, Push]) -> dict[int, Push]:
        """Write failure rows inside the caller's transaction; return those that somebody's lock kept back."""
        errors = {event_id: push.error for event_id, push in failed.items() if push.error is not None}
        if not errors:
            return {}
        kinds = ["permanent" if isinstance(e.cause, PermanentPortalError) else "transient" for e in errors.values()]
        rows = database.fetch(
            self._connection,
            "record_sync_failures",
            {
                "event_ids": list(errors),
                "visible": [failed[event_id].event.visible for event_id in errors],
                "kinds": kinds,
                "attempts": [error.attempts for error in errors.values()],
                "errors": [str(error.cause) for error in errors.values()],
                "codes": [error.cause.code for error in errors.values()],
                "correlation_ids": [error.cause.correlation_id for error in errors.values()],
            },
        )
        return {event_id: failed[event_id] for (event_id,) in rows}

    def _resolve(self, mentor_ids: Sequence[UUID]) -> None:
        database.execute(self._connection, "resolve_sync_failures", {"mentor_ids": list(mentor_ids)})

    @staticmethod
    def _count(push: Push, answer: Answer, counts: PortalCounts) -> None:
        if answer is Answer.LOST:
            counts.lost += push.begun
        elif answer is Answer.SETTLED and push.error is None:
            counts.delivered += push.begun
        elif answer is Answer.SETTLED and push.error is not None and _is_failure(push):
            counts.failed += 1
            counts.newly_blocked += isinstance(push.error.cause, PermanentPortalError)
            counts.errors.append(push.error)


def _log(push: Push, answer: Answer) -> None:
    """Note what became of one event, by its ids alone: what the portal said may name somebody."""
    event, error = push.event, push.error
    what = "event_not_tried" if not push.begun else "event_failed" if error is not None else "event_pushed"
    about: dict[str, object] = {
        "event": what,
        "event_id": event.id,
        "version": event.version,
        "mentor_id": str(event.mentor_id),
        "visible": event.visible,
        "settled": answer.name.lower(),
    }
    if error is not None:
        about |= {"attempts": error.attempts, "status": error.cause.status, "cause": type(error.cause).__name__}
    logger.debug("a portal %s", what.replace("_", " "), extra=about)


def _is_failure(push: Push) -> bool:
    """Whether this round counts against the event: not when everybody was refused, asked to wait, or cut short."""
    error = push.error
    return (
        error is not None
        and push.begun
        and not isinstance(error.cause, PortalStageError)
        and asked_to_wait(error) is None
    )


def _settlement(push: Push) -> Settlement:
    event, error = push.event, push.error
    status, delay_seconds = "pending", 0.0
    if not event.has_portal:  # lost since the last review; the next one withdraws it and notes what that means
        delay_seconds = FIRST_ROUND_DELAY_SECONDS
    elif error is None:
        status = "delivered" if push.begun else "pending"
    elif isinstance(error.cause, PermanentPortalError):
        status = "blocked"
    elif (wait := asked_to_wait(error)) is not None:
        delay_seconds = wait
    elif _is_failure(push):
        delay_seconds = round_delay_seconds(event.attempts)
    return Settlement(
        id=event.id,
        token=event.claim_token,
        version=event.version,
        status=status,
        delay_seconds=delay_seconds,
        uncount=status == "pending" and not _is_failure(push),
        error=str(error.cause) if error else None,
        code=error.cause.code if error else None,
    )
