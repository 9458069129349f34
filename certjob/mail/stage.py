"""The mail stage: claims, writes, sends and settles one message at a time.

``send_mails`` is the loop. It decides whether a failure concerns one message or all of them.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from certjob.errors import (
    Cause,
    ChannelDownError,
    MailRejectedError,
    NotifyError,
    OutcomeUnknownError,
    RecipientRejectedError,
    StageEnd,
)
from certjob.mail import steps
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.steps import Item, Mails
from certjob.outbox.calls import Calls
from certjob.outbox.claims import RELEASED, Answer, Settlement, StageStop
from certjob.outbox.retry import RetryPolicy, exponential, seconds_to_next_round
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

REJECTIONS_WITHOUT_A_SUCCESS = 20
"""After that number, the stage ends."""
LONGEST_REJECTION_SECONDS = 45 * 60
"""The longest wait after a rejection. A delivery every 15 minutes then tries the mail each hour."""
UNKNOWN_IN_A_ROW = 3
CHANNEL_POLICY = RetryPolicy(
    max_attempts=3,
    backoff=exponential(base_seconds=0.5, cap_seconds=5),
    deadline_seconds=120,
    is_transient=lambda error: isinstance(error, ChannelDownError),
)


@dataclass(slots=True, kw_only=True)
class MailCounts:
    """The number of messages by outcome, for the report."""

    sent: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0


@dataclass(slots=True)
class _Failures:
    """Failures that are the mail server's fault if there are many."""

    rejected: int = 0
    """Mails that the server has rejected since it accepted one."""
    unknown: int = 0
    """Unknown outcomes in a row."""


def send_mails(
    mails: Mails[Item],
    *,
    channel: Channel,
    calls: Calls,
    stop: StopFlag,
    counts: MailCounts,
    deadline_seconds: float,
    on_progress: Callable[[int], None] = lambda _sent: None,
) -> StageStop | None:
    """Send the due mails, each settled before the next, and return why the stage ended early, or None.

    It ends when none is left, at the deadline, or when the failures are the mail server's fault. Raises
    StoppedBySignalError after a signal. After an unexpected error, the claim of its mail stays until the lease expires.
    """
    deadline_at = time.monotonic() + deadline_seconds
    failures = _Failures()
    ended: StageStop | None = None
    while ended is None:
        stop.check()
        item = steps.claim(mails)
        if item is None:
            return None
        message = _prepare(mails, item, counts)
        if stop.is_set() or time.monotonic() >= deadline_at:
            if message is not None:
                steps.settle(mails, item, RELEASED)
            ended = _stopped(StageEnd.DEADLINE, "the time for deliveries is over; the rest stays pending")
        elif message is not None:
            error = _send(message, item, channel=channel, calls=calls)
            answer = _settle(mails, item, error, address=message.to)
            if error is None and (failures.rejected or not counts.sent):
                steps.retry_rejected(mails)
            _count(counts, error, answer)
            on_progress(counts.sent)
            ended = _judge(failures, error)
    stop.check()  # a signal also ends the attempts, and is then the reason
    return ended


def _prepare(mails: Mails[Item], item: Item, counts: MailCounts) -> OutgoingMessage | None:
    """Return the message. If there is none, its row is settled or released."""
    message = steps.prepare(mails, item)
    if not isinstance(message, Settlement):
        return message
    counts.cancelled += message.status == "cancelled"
    counts.failed += message.status == "failed"
    return None


def _send(message: OutgoingMessage, item: Item, *, channel: Channel, calls: Calls) -> NotifyError | None:
    """Send one message, up to three times while the channel is down, and return the last error, or None.

    No attempt may outlast the lease.
    """

    async def attempt() -> None:
        if not item.lease.fits(channel.worst_case_seconds):
            unfit = "a message can take longer than its lease, or this process stood still"
            raise ChannelDownError(unfit)
        await channel.send(message)

    attempts = calls.begin(CHANNEL_POLICY.call(attempt, stop=calls.stopped))
    calls.wait_for_one({attempts})
    try:
        attempts.result()
    except NotifyError as error:
        _log(message, "message not sent", cause=type(error).__name__)
        if isinstance(error, MailRejectedError) and error.may_be_address and item.accepted_since:
            return RecipientRejectedError(error.message, code=Cause.WRONG_ADDRESS)
        return error
    _log(message, "message sent")
    return None


def _settle(mails: Mails[Item], item: Item, error: NotifyError | None, *, address: str) -> Answer:
    """Store the outcome of one message."""
    if error is None:
        return steps.settle(mails, item, Settlement(status="sent"))
    if isinstance(error, ChannelDownError):  # it was not sent; the next stage tries it after the others
        return steps.settle(mails, item, RELEASED)
    if isinstance(error, RecipientRejectedError):
        return steps.reject(mails, item, error, address=address)
    seconds = seconds_to_next_round(item.attempts)
    later = Settlement(
        status="pending",
        error=str(error),
        code=error.code,
        delay_seconds=min(seconds, LONGEST_REJECTION_SECONDS) if isinstance(error, MailRejectedError) else seconds,
        maybe_sent=isinstance(error, OutcomeUnknownError),
    )
    return steps.settle(mails, item, later)


def _count(counts: MailCounts, error: NotifyError | None, answer: Answer) -> None:
    if isinstance(error, ChannelDownError):
        return
    counts.lost += answer is Answer.LOST
    counts.sent += error is None and answer is Answer.SETTLED
    counts.failed += isinstance(error, RecipientRejectedError) and answer is Answer.SETTLED


def _judge(failures: _Failures, error: NotifyError | None) -> StageStop | None:
    """Decide from one outcome whether the stage ends because the failures are the mail server's fault."""
    if isinstance(error, ChannelDownError):
        return _stopped(StageEnd.CHANNEL_DOWN, f"{error}; the rest stays pending", fault=str(error))
    failures.rejected = 0 if error is None else failures.rejected + isinstance(error, MailRejectedError)
    failures.unknown = failures.unknown + 1 if isinstance(error, OutcomeUnknownError) else 0
    if failures.rejected >= REJECTIONS_WITHOUT_A_SUCCESS:
        many = f"{REJECTIONS_WITHOUT_A_SUCCESS} messages were rejected and none was accepted (last: {error})"
        return _stopped(StageEnd.ALL_REFUSED, f"{many}; they and the rest stay pending")
    if failures.unknown >= UNKNOWN_IN_A_ROW:
        many = f"the outcome of {UNKNOWN_IN_A_ROW} messages in a row is unknown (last: {error})"
        return _stopped(StageEnd.OUTCOMES_UNKNOWN, f"{many}; the rest waits")
    return None


def _stopped(code: StageEnd, reason: str, *, fault: str = "") -> StageStop:
    return StageStop(stage="mail", code=code, reason=reason, fault=fault)


def _log(message: OutgoingMessage, what: str, **about: str) -> None:
    """Log the outcome of one message with its ids only."""
    if logger.isEnabledFor(logging.DEBUG):
        ids = {"kind": message.kind, "message_key": message.idempotency_key, "mentor_id": message.mentor_id}
        known = {name: str(value) for name, value in ids.items() if value is not None}
        logger.debug(what, extra=known | about)
