"""One push of one mentor's visibility: its calls, and what their outcome means."""

import asyncio
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import TYPE_CHECKING
from uuid import UUID

from certjob.domain.models import NOT_CERTIFIED
from certjob.errors import (
    Cause,
    DynamicsSyncException,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    TransientPortalError,
)
from certjob.outbox.claims import ClaimedRow
from certjob.outbox.retry import RetryPolicy, full_jitter

if TYPE_CHECKING:
    from certjob.portal.hlf_dynamics import HLFDynamicsSyncService  # httpx: 50 ms

CALL_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalEvent(ClaimedRow):
    """A claimed row of ``portal_sync_events`` with the values for a call. Its attempts are rounds of calls."""

    mentor_id: UUID
    member_no: str
    visible: bool
    visible_until: date | None
    """The last visible day; None for a hide."""
    version: int
    contact_id: UUID | None

    @property
    def idempotency_key(self) -> str:
        """Return a key that is equal for repeats of this value, and differs for the next value."""
        return f"{self.id}-{self.version}"


class PushOutcome(Enum):
    """The result of a round of calls for one event."""

    DELIVERED = "delivered"
    """The portal has the value."""
    BLOCKED = "blocked"
    """The portal rejected this contact, or the mentor has none. Someone has to correct it."""
    FAILED = "failed"
    """All calls failed. The next round comes later."""
    THROTTLED = "throttled"
    """The portal asked for a longer wait than a round allows. The attempt is not counted."""
    REJECTED = "rejected"
    """No push can succeed: the key, the URL or the function is wrong."""
    NOT_TRIED = "not_tried"
    """No call was made, or a signal ended the round early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """The outcome of one claimed event."""

    event: PortalEvent
    outcome: PushOutcome
    error: DynamicsSyncException | None = None
    """The error of the last call, if one failed."""
    dates: bool | None = None
    """Whether the portal has a column for the last visible day; None if it has not confirmed the value."""

    @property
    def is_tried(self) -> bool:
        """Return whether the round tells something about the event."""
        return self.outcome is not PushOutcome.NOT_TRIED

    @property
    def confirmed_until(self) -> date | None:
        """Return the confirmed last visible day: NOT_CERTIFIED for a hide, None without a column."""
        if not self.event.visible:
            return NOT_CERTIFIED
        return self.event.visible_until if self.dates else None

    @property
    def is_answered(self) -> bool:
        """Return whether the portal has answered a call about the event."""
        rejected = self.outcome is PushOutcome.BLOCKED and self.error is not None and self.error.attempts > 0
        return self.outcome is PushOutcome.DELIVERED or rejected

    @property
    def is_failure(self) -> bool:
        """Return whether the round failed because of the event."""
        return self.outcome in (PushOutcome.BLOCKED, PushOutcome.FAILED)

    @property
    def asked_seconds(self) -> float:
        """Return the wait that the portal asked for with its last answer, or 0."""
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
    event: PortalEvent,
    *,
    portal: "HLFDynamicsSyncService",
    stopped: asyncio.Event,
    policy: RetryPolicy = PORTAL_POLICY,
) -> Push:
    """Make the calls of one round for an event, and return their outcome.

    A call is repeated only if the repeat is certain to finish within the lease, and not after a signal.
    """
    if not event.lease.fits(policy.worst_case_seconds(CALL_DEADLINE_SECONDS)):  # the process was suspended
        return Push(event=event, outcome=PushOutcome.NOT_TRIED)
    errors: list[PortalCallError] = []  # one for each call

    async def call() -> bool:
        if event.contact_id is None:
            missing = "no contact ID"
            raise PermanentPortalError(missing, code=Cause.NO_CONTACT_ID)
        if errors and not event.lease.fits(CALL_DEADLINE_SECONDS):
            raise errors[-1]
        try:
            return await portal.update_portal_visibility(
                event.contact_id,
                visible=event.visible,
                visible_until=event.visible_until,
                idempotency_key=event.idempotency_key,
            )
        except PortalCallError as failed:
            errors.append(failed)
            raise

    try:
        dates = await policy.call(call, stop=stopped)
    except PortalCallError as cause:
        is_cut_short = stopped.is_set() and len(errors) < policy.max_attempts
        return _failed(event, cause, calls=len(errors), is_cut_short=is_cut_short, policy=policy)
    return Push(event=event, outcome=PushOutcome.DELIVERED, dates=dates)


def _failed(event: PortalEvent, cause: PortalCallError, *, calls: int, is_cut_short: bool, policy: RetryPolicy) -> Push:
    who, step = f"mentor {event.member_no} ({event.mentor_id})", None
    then = f"then run `certjob resync {event.member_no}`"
    if isinstance(cause, PermanentPortalError):
        outcome, message = PushOutcome.BLOCKED, f"the portal rejected {who}: {cause}"
        step = f"check the contact ID in the app and the contact in Dynamics, {then}"
        if not calls:
            message = f"{who} cannot be pushed: {cause}"
            step = f"add the contact ID in the app, {then}"
    elif isinstance(cause, PortalStageError):
        outcome, message, step = PushOutcome.REJECTED, f"no push can succeed: {cause.message}", cause.next_step
    else:
        times = "1 call" if calls == 1 else f"{calls} calls"
        message = f"the push of {who} failed after {times}: {cause}"
        outcome = PushOutcome.NOT_TRIED if is_cut_short else PushOutcome.FAILED
        if (cause.retry_after_seconds or 0.0) > policy.longest_retry_after_seconds:
            outcome = PushOutcome.THROTTLED
    error = DynamicsSyncException(
        message, next_step=step, mentor_id=event.mentor_id, event_id=event.id, attempts=calls, cause=cause
    )
    return Push(event=event, outcome=outcome, error=error)
