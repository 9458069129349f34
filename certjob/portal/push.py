"""One push of one mentor's visibility: the tries, what to make of their outcome, and when the next round is due."""

from collections.abc import Callable
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
from certjob.outbox.retry import RetryPolicy, full_jitter
from certjob.stopping import StopFlag

CALL_DEADLINE_SECONDS = 30.0
LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS = 20.0
FIRST_ROUND_DELAY_SECONDS = 15 * 60.0
LONGEST_ROUND_DELAY_SECONDS = 6 * 3600.0


class PortalTarget(Protocol):
    """What pushes one value: HLFDynamicsSyncService, or a double of it in tests."""

    def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
        """Make one call. Raises TransientPortalError, PermanentPortalError or PortalStageError."""


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
    """False: no call was made (the stage stopped, the lease was too short, or there is nothing to call for)."""


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


def push_event(
    event: PortalEvent,
    target: PortalTarget,
    *,
    policy: RetryPolicy,
    stop: StopFlag | None = None,
    on_wait: Callable[[Exception, float], None] | None = None,
    may_repeat: Callable[[], bool] = lambda: True,
) -> None:
    """Push one event's value, with the policy's tries; ``may_repeat`` is asked (and may wait) before each repeat.

    Raises DynamicsSyncException when it is given up for this round; its cause tells the outcome's class.
    """
    calls = 0
    last_error: PortalCallError | None = None
    contact_id = event.contact_id
    if contact_id is None:
        missing = PermanentPortalError("no dynamics_contact_id", code=FailureCode.NO_CONTACT_ID)
        raise _given_up(event, attempts=0, cause=missing)

    def call() -> None:
        nonlocal calls, last_error
        if last_error is not None and not may_repeat():
            raise last_error
        calls += 1
        try:
            target.update_portal_visibility(contact_id, visible=event.visible, idempotency_key=event.idempotency_key)
        except PortalCallError as error:
            last_error = error
            raise

    try:
        policy.call_blocking(call, stop=stop, on_wait=on_wait)
    except PortalCallError as error:
        raise _given_up(event, attempts=calls, cause=error) from error


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
