"""The desired visibility of mentors: queued, claimed, settled, and an alert while it is not delivered.

Our state is never rolled back because the portal failed. An event is delivered, withdrawn (its organisation lost the
portal), or open and visible as an alert.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from uuid import UUID

from certjob import database
from certjob.database import persist
from certjob.errors import CertjobError, StageEnd
from certjob.outbox.claims import Answer, Lease, Outbox, Settlement
from certjob.outbox.retry import seconds_to_next_round
from certjob.portal.push import PortalEvent, Push, PushOutcome

logger = logging.getLogger(__name__)

LEASE_SECONDS = 300.0
_LOCK_TIMEOUT_MS = 500


@dataclass(slots=True, kw_only=True)
class PortalCounts:
    """What a stage did, for the report."""

    delivered: int = 0
    failed: int = 0
    lost: int = 0
    news: int = 0
    """Of those that failed, how many had not failed before, or for another reason."""

    def add(self, push: Push, answer: Answer) -> None:
        """Count one settled event; not what was raised, which is pushed again, nor what another session holds."""
        if answer is Answer.LOST:
            self.lost += push.is_tried
        elif answer is Answer.SETTLED:
            self.delivered += push.outcome is PushOutcome.DELIVERED
            self.failed += push.is_failure


class PortalSyncService:
    """Everything that is written about portal events; the calls themselves are made without it."""

    def __init__(self, connection: database.Connection, *, run_id: UUID, lease_seconds: float = LEASE_SECONDS) -> None:
        self._connection = connection
        self._run_id = run_id
        self._outbox = Outbox(
            connection=connection, table="portal_events", item=PortalEvent, lease_seconds=lease_seconds
        )

    def queue(
        self, desired: Sequence[tuple[UUID, bool]], *, moved_from: Mapping[UUID, date] = MappingProxyType({})
    ) -> int:
        """Queue (mentor, desired visibility) inside the caller's transaction; an open event is replaced.

        ``moved_from`` has the last visible day so far of each mentor for whom only that day moves.
        """
        if not desired:
            return 0
        mentor_ids, visible = [each[0] for each in desired], [each[1] for each in desired]
        parameters = {
            "mentor_ids": mentor_ids,
            "visible": visible,
            "moved_from": [moved_from.get(mentor_id) for mentor_id in mentor_ids],
            "run_id": self._run_id,
        }
        return database.execute(self._connection, "queue_portal_events", parameters)

    def reopen_all(self) -> int:
        """Make every open event due now, blocked ones too, committed on return; return how many there are."""
        parameters = {"run_id": self._run_id}
        return persist(self._connection, lambda: database.execute(self._connection, "reopen_portal_events", parameters))

    def withdraw(self, mentor_ids: Sequence[UUID]) -> set[UUID]:
        """Withdraw what is open for mentors of organisations without a portal, inside the caller's transaction.

        Returns the mentors for whom something was open. A withdrawn hide stays an alert: someone must hide by hand.
        """
        if not mentor_ids:
            return set()
        rows = database.fetch(self._connection, "withdraw_portal_events", {"mentor_ids": list(mentor_ids)})
        withdrawn = {row[0] for row in rows}
        if withdrawn:
            self._resolve(sorted(withdrawn))
        return withdrawn

    def take_back(self) -> int:
        """Take back the claims of processes that died, and their attempts; return how many, committed.

        Nothing is known to be wrong with these events: each keeps its place in the line.
        """
        return persist(self._connection, lambda: database.execute(self._connection, "take_back_portal_claims"))

    def claim(self, limit: int, *, today: date | None) -> list[tuple[PortalEvent, Lease]]:
        """Claim due events: untried hides, untried shows, retried hides, retried shows, moves of the last day.

        A show is claimed only if the mentor needs no review before ``today`` is over; without a day, none is.
        """
        events, lease = self._outbox.claim("lock_due_portal_events", {"limit": limit, "today": today})
        return [(event, lease) for event in events]

    def claim_mentor(self, mentor_id: UUID, *, today: date | None) -> list[tuple[PortalEvent, Lease]]:
        """Claim one mentor's open event whatever its retry time; not while another run holds it."""
        events, lease = self._outbox.claim("lock_portal_event", {"mentor_id": mentor_id, "today": today})
        return [(event, lease) for event in events]

    def settle(self, push: Push, counts: PortalCounts) -> Answer:
        """Write what became of one claimed event, with its failure row or resolution, in one transaction; count it.

        HELD: another session keeps the event for longer than this waits. It keeps its lease, and is pushed again after
        that. A failure whose mentor is held gets its row with the next failure; it is an alert after an hour anyway.
        """
        is_news = False

        def record(answer: Answer) -> None:
            nonlocal is_news
            if answer is Answer.SETTLED and push.is_failure:
                is_news = self._record_failure(push)
            elif answer is Answer.SETTLED and push.outcome is PushOutcome.DELIVERED:
                self._resolve([push.event.mentor_id])

        answer = self._outbox.settle(push.event, _settlement(push), then=record, lock_timeout_ms=_LOCK_TIMEOUT_MS)
        counts.add(push, answer)
        counts.news += is_news
        if logger.isEnabledFor(logging.DEBUG):
            _log(push, answer)
        return answer

    def settle_again(self, pushes: Sequence[Push], counts: PortalCounts) -> None:
        """Settle pushes that ended after the database went away, over one new connection.

        Without it they keep their leases, and are pushed again after that.
        """
        with suppress(CertjobError), database.connect_again(self._connection) as fresh:
            service = PortalSyncService(fresh, run_id=self._run_id)
            for push in pushes:
                service.settle(push, counts)

    def record_stage_end(
        self,
        reason: str,
        *,
        end: StageEnd,
        mentor_id: UUID | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Give every open hide (or one mentor's) without one a failure row: nothing waits unseen after an early end.

        ``correlation_id`` is that of the answer which ended the stage, if one did.
        """
        parameters = {"error": reason, "code": end.cause, "mentor_id": mentor_id, "correlation_id": correlation_id}
        persist(self._connection, lambda: database.execute(self._connection, "record_stage_failures", parameters))

    def _record_failure(self, push: Push) -> bool:
        """Write the failure row inside the caller's transaction; return whether it is news.

        None is written while another session holds the mentor; that is said each time.
        """
        error = push.error
        if error is None:
            return False
        parameters = {
            "event_id": push.event.id,
            "visible": push.event.visible,
            "kind": "permanent" if push.outcome is PushOutcome.BLOCKED else "transient",
            "attempts": error.attempts,
            "error": str(error.cause),
            "code": error.cause.code,
            "correlation_id": error.cause.correlation_id,
        }
        rows = database.fetch(self._connection, "record_sync_failure", parameters)
        return bool(rows[0][0]) if rows else True

    def _resolve(self, mentor_ids: Sequence[UUID]) -> None:
        database.execute(self._connection, "resolve_sync_failures", {"mentor_ids": list(mentor_ids)})


def _log(push: Push, answer: Answer) -> None:
    """Log the end of one event, by its ids alone: what the portal said may name someone."""
    event, error = push.event, push.error
    what = "event_not_tried" if not push.is_tried else "event_failed" if error else "event_pushed"
    about = {"event": what, "event_id": event.id, "version": event.version, "mentor_id": str(event.mentor_id)}
    about |= {"visible": event.visible, "settled": answer.value}
    if error:
        about |= {"attempts": error.attempts, "status": error.cause.status, "cause": type(error.cause).__name__}
    logger.debug("a portal %s", what.replace("_", " "), extra=about)


def _settlement(push: Push) -> Settlement:
    is_final = push.outcome in (PushOutcome.DELIVERED, PushOutcome.BLOCKED)
    failed = push.outcome is PushOutcome.FAILED
    return Settlement(
        status=push.outcome.value if is_final else "pending",
        delay_seconds=seconds_to_next_round(push.event.attempts) if failed else push.asked_seconds,
        count_attempt=is_final or failed,
        error=str(push.error.cause) if push.error else None,
        code=push.error.cause.code if push.error else None,
    )
