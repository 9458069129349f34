"""One push of one mentor's visibility: the tries, what to make of their outcome, and when the next round is due."""

import asyncio
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from certjob.errors import (
    Cause,
    DynamicsSyncException,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    TransientPortalError,
)
from certjob.outbox.claims import ClaimedRow, Lease
from certjob.outbox.retry import RetryPolicy, full_jitter

if TYPE_CHECKING:
    from certjob.portal.hlf_dynamics import HLFDynamicsSyncService  # httpx: 50 ms

CALL_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalEvent(ClaimedRow):
    """A claimed row of ``portal_sync_events`` with what a call needs; its attempts are rounds of calls."""

    mentor_id: UUID
    member_no: str
    visible: bool
    visible_until: date | None
    """The last visible day; None for a hide."""
    version: int
    contact_id: UUID | None

    @property
    def idempotency_key(self) -> str:
        """The same for every repeat of this value, another for the next one."""
        return f"{self.id}-{self.version}"


class PushOutcome(Enum):
    """What a round of calls for one event came to."""

    DELIVERED = "delivered"
    """The portal has the value."""
    BLOCKED = "blocked"
    """The portal refused this contact, or there is none: somebody has to correct it."""
    FAILED = "failed"
    """All calls failed; the next round comes later."""
    THROTTLED = "throttled"
    """The portal asked to wait for longer than a call does. It does not count against the event."""
    REFUSED = "refused"
    """Nobody can be pushed: the key, the address or the function is wrong."""
    NOT_TRIED = "not_tried"
    """Not begun, or ended before anything was learned about the event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What became of one claimed event."""

    event: PortalEvent
    outcome: PushOutcome
    error: DynamicsSyncException | None = None
    """The error of the last call, if one failed."""

    @property
    def is_tried(self) -> bool:
        """Whether this was a round."""
        return self.outcome is not PushOutcome.NOT_TRIED

    @property
    def is_failure(self) -> bool:
        """Whether the round counts against the event."""
        return self.outcome in (PushOutcome.BLOCKED, PushOutcome.FAILED)

    @property
    def asked_seconds(self) -> float:
        """How long the portal asked to wait with its last answer; otherwise 0."""
        return (self.error.cause.retry_after_seconds or 0.0) if self.error is not None else 0.0


PORTAL_POLICY = RetryPolicy(
    max_attempts=3,
    backoff=full_jitter(base_seconds=0.5, cap_seconds=20),
    deadline_seconds=100,
    longest_retry_after_seconds=20,
    is_transient=lambda error: isinstance(error, TransientPortalError),
    retry_after=lambda error: error.retry_after_seconds if isinstance(error, PortalCallError) else None,
)
"""The calls of one round."""


async def push_once(
    event: PortalEvent, lease: Lease, *, portal: "HLFDynamicsSyncService", policy: RetryPolicy, stopped: asyncio.Event
) -> Push:
    """Push one event's value, with the policy's tries, and return what became of it.

    A repeat is made only if it surely ends inside the lease, and none after a signal.
    """
    if not lease.fits(policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):  # the process stood still
        return Push(event=event, outcome=PushOutcome.NOT_TRIED)
    errors: list[PortalCallError] = []  # of the calls that were made
    outcome, error = PushOutcome.DELIVERED, None

    async def call() -> None:
        if event.contact_id is None:
            missing = "no contact ID"
            raise PermanentPortalError(missing, code=Cause.NO_CONTACT_ID)
        if errors and not lease.fits(CALL_DEADLINE_SECONDS):
            raise errors[-1]
        try:
            await portal.update_portal_visibility(
                event.contact_id,
                visible=event.visible,
                visible_until=event.visible_until,
                idempotency_key=event.idempotency_key,
            )
        except PortalCallError as failed:
            errors.append(failed)
            raise

    try:
        await policy.call(call, stop=stopped)
    except PortalCallError as cause:
        error = _given_up(event, attempts=len(errors), cause=cause)
        if isinstance(cause, PermanentPortalError):
            outcome = PushOutcome.BLOCKED
        elif isinstance(cause, PortalStageError):
            outcome = PushOutcome.REFUSED
        elif (cause.retry_after_seconds or 0.0) > policy.longest_retry_after_seconds:
            outcome = PushOutcome.THROTTLED
        else:
            is_cut_short = stopped.is_set() and len(errors) < policy.max_attempts
            outcome = PushOutcome.NOT_TRIED if is_cut_short else PushOutcome.FAILED
    return Push(event=event, outcome=outcome, error=error)


def _given_up(event: PortalEvent, *, attempts: int, cause: PortalCallError) -> DynamicsSyncException:
    who, step = f"mentor {event.member_no} ({event.mentor_id})", None
    if isinstance(cause, PermanentPortalError) and not attempts:
        message = f"{who} cannot be pushed: {cause}"
        step = "add the contact ID in the app, then run the same command again"
    elif isinstance(cause, PermanentPortalError):
        message = f"portal refused {who}: {cause}"
        step = "check the contact ID in the app and the contact in Dynamics, then run the same command again"
    elif isinstance(cause, PortalStageError):
        message, step = f"portal cannot be pushed to: {cause.message}", cause.next_step
    else:
        times = "1 call" if attempts == 1 else f"{attempts} calls"
        message = f"portal push of {who} failed after {times}: {cause}"
    return DynamicsSyncException(
        message, next_step=step, mentor_id=event.mentor_id, event_id=event.id, attempts=attempts, cause=cause
    )
