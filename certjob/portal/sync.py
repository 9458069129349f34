"""Queue, claim and settle the desired visibility of mentors.

certjob keeps its own state when the portal fails. An event is delivered, withdrawn (its organisation lost the portal),
or open; an open event that fails is an alert.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from typing import Self
from uuid import UUID

from certjob import database
from certjob.database import persist
from certjob.domain.models import LAST_PORTAL_DAY, Decision
from certjob.errors import StageEnd
from certjob.outbox.claims import Answer, Outbox, Settlement, store_again
from certjob.outbox.retry import seconds_to_next_round
from certjob.portal.push import PortalEvent, Push, PushOutcome

logger = logging.getLogger(__name__)

LEASE_SECONDS = 300.0
_LOCK_TIMEOUT_MS = 500


@dataclass(slots=True, kw_only=True)
class PortalCounts:
    """The settled events of a stage, for the report."""

    delivered: int = 0
    failed: int = 0
    lost: int = 0
    news: int = 0
    """The failed events that had not failed before, or for another reason."""
    causes: set[str] = field(default_factory=set)
    """Of the failed events, as in the alerts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The desired visibility of one mentor."""

    mentor_id: UUID
    visible: bool
    wanted_until: date | None = None
    """The last visible day; None for a hide."""
    read_until: date | None = None
    """The last day that a reading of the portal has found, or None."""

    @classmethod
    def of(cls, decision: Decision) -> Self:
        """Return the visibility that a review has decided."""
        until = min(decision.certified_until, LAST_PORTAL_DAY) if decision.visible else None
        return cls(
            mentor_id=decision.mentor_id,
            visible=decision.visible,
            wanted_until=until,
        )


class PortalSyncService:
    """Writes portal events and their failures. The stage makes the calls."""

    def __init__(self, connection: database.Connection, *, run_id: UUID, lease_seconds: float = LEASE_SECONDS) -> None:
        self._connection = connection
        self._run_id = run_id
        self._outbox = Outbox(
            connection=connection,
            item=PortalEvent,
            claim_statement="claim_portal_events",
            settle_statement="settle_portal_events",
            lease_seconds=lease_seconds,
        )

    def queue(self, wishes: Sequence[Wish]) -> int:
        """Queue the desired visibility of mentors in the caller's transaction, and replace their open events."""
        if not wishes:
            return 0
        parameters = {
            "mentor_ids": [wish.mentor_id for wish in wishes],
            "visible": [wish.visible for wish in wishes],
            "wanted_until": [wish.wanted_until for wish in wishes],
            "read_until": [wish.read_until for wish in wishes],
            "run_id": self._run_id,
        }
        return database.execute(self._connection, "queue_portal_events", parameters)

    def reopen_all(self) -> int:
        """Make all open events due now, blocked ones too, and commit; return their number."""
        parameters = {"run_id": self._run_id}
        return persist(self._connection, lambda: database.execute(self._connection, "reopen_portal_events", parameters))

    def withdraw(self, mentor_ids: Sequence[UUID], *, hidden: Sequence[UUID], today: date) -> set[UUID]:
        """Withdraw the open events of mentors whose organisation has no portal, in the caller's transaction.

        Returns the mentors who had an open event. A withdrawn hide stays an alert, because someone must hide by hand.
        Those in ``hidden`` must not be visible. They get one if a former portal may still show them.
        """
        if not mentor_ids:
            return set()
        asked = {"mentor_ids": list(mentor_ids), "hidden": list(hidden), "today": today, "run_id": self._run_id}
        rows = database.fetch(self._connection, "withdraw_portal_events", asked)
        withdrawn = sorted(mentor_id for (mentor_id,) in rows)
        if withdrawn:
            self._resolve(withdrawn)
        return set(withdrawn)

    def take_back(self) -> int:
        """Clear the expired claims of processes that died, without counting their attempts; return their number."""
        return persist(self._connection, lambda: database.execute(self._connection, "take_back_portal_claims"))

    def claim(self, limit: int, *, today: date | None) -> list[PortalEvent]:
        """Claim due events: untried urgent ones, untried shows, retried urgent ones, retried shows, later last days.

        A show is claimed only if the mentor's next review is later than ``today``, and never without a day.
        """
        return self._outbox.claim("lock_due_portal_events", {"limit": limit, "today": today})

    def claim_mentor(self, mentor_id: UUID, *, today: date | None) -> list[PortalEvent]:
        """Claim one mentor's open event before its retry time, unless another run has claimed it."""
        return self._outbox.claim("lock_portal_event", {"mentor_id": mentor_id, "today": today})

    def settle(self, push: Push, counts: PortalCounts) -> Answer:
        """Store and count the outcome of one claimed event; record or resolve its failure in the same transaction.

        HELD: another session has locked the event. It keeps its lease, and is pushed again when that has expired. If
        another session has locked the mentor, the failure is recorded with the next one; after an hour the open event
        is an alert in any case.
        """
        is_news = False
        try:
            with database.transaction(self._connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
                answer = self._outbox.store(push.event, _settlement(push), confirmed_until=push.confirmed_until)
                if answer is Answer.SETTLED and push.is_failure:
                    is_news = self._record_failure(push)
                elif answer is Answer.SETTLED and push.outcome is PushOutcome.DELIVERED:
                    self._resolve([push.event.mentor_id])
        except database.CONTENTION:
            answer = Answer.HELD
        counts.lost += answer is Answer.LOST and push.is_tried
        if answer is Answer.SETTLED:
            counts.delivered += push.outcome is PushOutcome.DELIVERED
            counts.failed += push.is_failure
            counts.news += is_news
            counts.causes |= {push.error.cause.code} if push.is_failure and push.error else set()
        if logger.isEnabledFor(logging.DEBUG):
            _log(push, answer)
        return answer

    def settle_again(self, pushes: Sequence[Push], counts: PortalCounts) -> None:
        """Settle pushes over one new connection, after the old one was lost."""

        def settle(fresh: database.Connection) -> None:
            for push in pushes:
                PortalSyncService(fresh, run_id=self._run_id).settle(push, counts)

        if pushes:
            store_again(self._connection, settle)

    def record_stage_end(
        self, reason: str, *, end: StageEnd, mentor_id: UUID | None = None, correlation_id: str | None = None
    ) -> None:
        """Record the reason of an early end as the failure of every urgent push, or of one mentor's.

        ``correlation_id`` is that of the answer that ended the stage, if any.
        """
        parameters = {"error": reason, "code": end.cause, "mentor_id": mentor_id, "correlation_id": correlation_id}
        record = partial(database.execute, self._connection, "record_stage_failures", parameters)
        persist(self._connection, record, by_index=True)

    def _record_failure(self, push: Push) -> bool:
        """Record the failure in the caller's transaction; return whether it is news.

        No row is written while another session has locked the mentor. That counts as news.
        """
        error = push.error
        assert error is not None  # noqa: S101 - a failure has an error
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
    """Log the outcome of one event with its IDs only, because the text of the portal may name a person."""
    event, error = push.event, push.error
    what = "push not tried" if not push.is_tried else "push failed" if error else "push delivered"
    about = {"event_id": event.id, "version": event.version, "mentor_id": str(event.mentor_id)}
    about |= {"visible": event.visible, "settled": answer.value}
    if error:
        about |= {"attempts": error.attempts, "status": error.cause.status, "cause": type(error.cause).__name__}
    logger.debug(what, extra=about)


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
