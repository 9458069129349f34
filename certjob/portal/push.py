"""One push of one mentor's visibility: the tries, what to make of their outcome, and when the next round is due."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from certjob.errors import (
    DynamicsSyncException,
    FailureCode,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    TransientPortalError,
)
from certjob.outbox.claims import Lease
from certjob.outbox.retry import RetryPolicy, full_jitter
from certjob.portal.rate import LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS, RateLimiter

CALL_DEADLINE_SECONDS = 30.0
FIRST_ROUND_DELAY_SECONDS = 15 * 60.0
LONGEST_ROUND_DELAY_SECONDS = 6 * 3600.0


class PortalTarget(Protocol):
    """What pushes one value: HLFDynamicsSyncService, or a double of it in tests."""

    async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
        """Make one call. Raises TransientPortalError, PermanentPortalError or PortalStageError."""


MakeTarget = Callable[[], AbstractAsyncContextManager[PortalTarget]]
"""Opens the portal's client; its connections are closed at the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortalEvent:
    """A claimed row of ``portal_sync_events`` with what a call needs."""

    id: int
    mentor_id: UUID
    member_no: str
    visible: bool
    version: int
    attempts: int
    """Rounds, this one included."""
    claim_token: UUID
    contact_id: UUID | None
    has_portal: bool

    @property
    def idempotency_key(self) -> str:
        """The same for every repeat of this wish, another for the next one."""
        return f"{self.id}-{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What became of one claimed event."""

    event: PortalEvent
    error: DynamicsSyncException | None = None
    """None: the portal has the value."""
    begun: bool = True
    """False: this was no round that counts (released, cut short, or there is nothing to call for)."""
    outcome_unknown: bool = False
    """Whether a call of this round may have been acted on, or may yet be."""


def portal_policy(*, max_attempts: int) -> RetryPolicy:
    """The policy of one round: transient errors are worth another try, a Retry-After is kept."""
    return RetryPolicy(
        max_attempts=max_attempts,
        backoff=full_jitter(base_seconds=0.5, cap_seconds=20),
        deadline_seconds=100,
        longest_retry_after_seconds=LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS,
        is_transient=lambda error: isinstance(error, TransientPortalError),
        retry_after=lambda error: error.retry_after_seconds if isinstance(error, PortalCallError) else None,
    )


def round_delay_seconds(rounds: int) -> float:
    """Seconds until the next round after so many failed ones: 15 min, 30 min, … at most 6 h."""
    return float(min(FIRST_ROUND_DELAY_SECONDS * 2 ** min(rounds - 1, 10), LONGEST_ROUND_DELAY_SECONDS))


def asked_to_wait(error: DynamicsSyncException) -> float | None:
    """Seconds that the portal asked for, when they are too long to be slept inside a round."""
    seconds = error.cause.retry_after_seconds
    if isinstance(error.cause, TransientPortalError) and seconds is not None:
        return seconds if seconds > LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS else None
    return None


def refusal_code(error: PortalStageError) -> str:
    """Return the code of a stage that everybody was refused in: another status is another reason."""
    return "refused" if error.status is None else f"refused:{error.status}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pusher:
    """Pushes claimed events, any number at once."""

    target: PortalTarget
    policy: RetryPolicy
    rate: RateLimiter
    """What the portal asks one call to wait is kept from all others, too."""
    halt: asyncio.Event
    """Begin nothing more, repeat nothing more."""

    async def push(self, event: PortalEvent, lease: Lease) -> Push:
        """Push one event's value, with the policy's tries, and return what became of it.

        A repeat waits for its turn, and is made only if it surely ends inside the lease.
        """
        fits = lease.fits(self.policy.worst_case_seconds(CALL_DEADLINE_SECONDS))
        if not fits or not event.has_portal:  # the process stood still, or the portal was lost since the last review
            return Push(event=event, begun=False)
        contact_id = event.contact_id
        if contact_id is None:
            missing = PermanentPortalError("no dynamics_contact_id", code=FailureCode.NO_CONTACT_ID)
            return Push(event=event, error=_given_up(event, attempts=0, cause=missing))
        errors: list[PortalCallError] = []  # of the calls that were made
        error: DynamicsSyncException | None = None
        try:
            await self.policy.call(
                lambda: self._call(event, contact_id, lease, errors), stop=self.halt, on_wait=self._hold_all_others
            )
        except PortalCallError as cause:
            self._hold_all_others(cause, 0.0)  # its last call may have asked for a wait, too
            error = _given_up(event, attempts=len(errors), cause=cause)
            error.__cause__ = cause
        outcome_unknown = any(each.code is FailureCode.OUTCOME_UNKNOWN for each in errors)
        return Push(event=event, error=error, begun=not self._is_cut_short(error), outcome_unknown=outcome_unknown)

    async def _call(self, event: PortalEvent, contact_id: UUID, lease: Lease, errors: list[PortalCallError]) -> None:
        if errors and not (await self.rate.wait(self.halt) and lease.fits(CALL_DEADLINE_SECONDS)):
            raise errors[-1]
        try:
            await self.target.update_portal_visibility(
                contact_id, visible=event.visible, idempotency_key=event.idempotency_key
            )
        except PortalCallError as error:
            if isinstance(error, PortalStageError):
                self.halt.set()  # at once: nobody else is called
            errors.append(error)
            raise

    def _hold_all_others(self, error: Exception, seconds: float) -> None:
        if isinstance(error, TransientPortalError) and error.retry_after_seconds:
            self.rate.hold(max(seconds, error.retry_after_seconds))

    def _is_cut_short(self, error: DynamicsSyncException | None) -> bool:
        """Whether a round ended before it could tell anything about its event."""
        return (
            error is not None
            and error.attempts < self.policy.max_attempts
            and isinstance(error.cause, TransientPortalError)
            and asked_to_wait(error) is None
            and (self.halt.is_set() or self.rate.is_held)
        )


def _given_up(event: PortalEvent, *, attempts: int, cause: PortalCallError) -> DynamicsSyncException:
    retry_at = None
    if isinstance(cause, PermanentPortalError):
        step = f"correct dynamics_contact_id, then `certjob resync {event.member_no}`"
        message = f"portal refused mentor {event.member_no} ({event.mentor_id}): {cause}; {step}"
    elif isinstance(cause, PortalStageError):
        message = f"portal cannot be pushed to: {cause}"
    else:
        asked = cause.retry_after_seconds or 0.0
        too_long = asked > LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS
        delay_seconds = asked if too_long else round_delay_seconds(event.attempts)
        retry_at = datetime.now().astimezone() + timedelta(seconds=delay_seconds)
        times = "1 call" if attempts == 1 else f"{attempts} calls"
        message = (
            f"portal push of mentor {event.member_no} ({event.mentor_id}) failed after {times}: {cause}; "
            f"it is tried again at {retry_at:%Y-%m-%d %H:%M}"
        )
    return DynamicsSyncException(
        message, mentor_id=event.mentor_id, event_id=event.id, attempts=attempts, cause=cause, retry_at=retry_at
    )
