"""The mail stage: claims, writes, sends and settles one message at a time.

The queue knows reminders and digests. This module decides whether a failure concerns one message or all of them.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

from certjob.errors import ChannelDownError, NotifyError, OutcomeUnknownError, RecipientRefusedError, StageEnd
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.queue import MailQueue
from certjob.outbox.calls import Calls
from certjob.outbox.claims import RELEASED, Answer, Item, Lease, Settlement, StageStop
from certjob.outbox.retry import RetryPolicy, exponential, seconds_to_next_round
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

REFUSALS_IN_A_ROW = 5
UNKNOWN_IN_A_ROW = 3
CHANNEL_POLICY = RetryPolicy(
    max_attempts=3,
    backoff=exponential(base_seconds=0.5, cap_seconds=5),
    deadline_seconds=120,
    is_transient=lambda error: isinstance(error, ChannelDownError),
    retry_after=lambda error: getattr(error, "retry_after_seconds", None),
)


@dataclass(slots=True, kw_only=True)
class MailCounts:
    """The number of messages by outcome, for the report."""

    sent: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0


@dataclass(slots=True)
class MailStage(Generic[Item]):
    """Sends the due messages of a queue until none is left, the deadline has passed, or the channel is down."""

    queue: MailQueue[Item]
    channel: Channel
    calls: Calls
    stop: StopFlag
    counts: MailCounts
    on_progress: Callable[[int], None] = lambda _sent: None
    is_open: Callable[[], bool] = lambda: True
    _refused: list[Item] = field(default_factory=list, init=False)
    _unknown_in_a_row: int = field(default=0, init=False)

    def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Send, and return why the stage stopped early, or None. Outside the mail hours it sends no message.

        Raises StoppedBySignalError after a signal.
        """
        deadline_at = time.monotonic() + deadline_seconds
        early: StageStop | None = None
        while early is None:
            self.stop.check()
            if not self.is_open():
                return None
            item, lease = self.queue.claim()
            if item is None:
                return None
            message = self._write(item)
            if self.stop.is_set() or time.monotonic() >= deadline_at:
                if message is not None:
                    self.queue.settle(item, RELEASED)
                early = _stopped(StageEnd.DEADLINE, "the time for deliveries is over; the rest stays pending")
            elif message is not None:
                early = self._deliver(item, lease, message)
        self.stop.check()  # a signal also ends the attempts, and is then the reason
        return early

    def _write(self, item: Item) -> OutgoingMessage | None:
        """Return the message. If there is none, the queue has settled or released the row."""
        draft = self.queue.draft(item)
        if not isinstance(draft, Settlement):
            return draft
        self.counts.cancelled += draft.status == "cancelled"
        self.counts.failed += draft.status == "failed"
        return None

    def _deliver(self, item: Item, lease: Lease, message: OutgoingMessage) -> StageStop | None:
        """Send and settle one message. After an unexpected error its claim stays until the lease expires."""
        try:
            self.calls.make(self._send(message, lease))
        except ChannelDownError as error:  # it was not sent; the next stage tries it after the others
            self.queue.settle(item, RELEASED)
            return _stopped(StageEnd.CHANNEL_DOWN, f"{error}; the rest stays pending", fault=str(error))
        except RecipientRefusedError as error:
            return self._settle_refusal(item, error, address=message.to)
        except NotifyError as error:
            return self._settle_later(item, error)
        self._reset()
        answer = self.queue.settle(item, Settlement(status="sent"))
        self.counts.sent += answer is Answer.SETTLED
        self.counts.lost += answer is Answer.LOST
        self.on_progress(self.counts.sent)
        return None

    async def _send(self, message: OutgoingMessage, lease: Lease) -> None:
        """Send one message, up to three times while the channel is down. No attempt may outlast the lease."""

        async def attempt() -> None:
            if not lease.fits(self.channel.worst_case_seconds):
                unfit = "a message can take longer than its lease, or this process stood still"
                raise ChannelDownError(unfit)
            await self.channel.send(message)

        try:
            await CHANNEL_POLICY.call(attempt, stop=self.calls.stopped)
        except NotifyError as error:
            _log(message, "message_not_sent", cause=type(error).__name__)
            raise
        _log(message, "message_sent")

    def _settle_later(self, item: Item, error: NotifyError) -> StageStop | None:
        """Schedule a retry. Three unknown outcomes in a row end the stage, because the server is at fault."""
        maybe_sent = isinstance(error, OutcomeUnknownError)
        later = Settlement(
            status="pending",
            error=str(error),
            code=error.code,
            delay_seconds=seconds_to_next_round(item.attempts),
            maybe_sent=maybe_sent,
        )
        self.counts.lost += self.queue.settle(item, later) is Answer.LOST
        if not maybe_sent:
            self._reset()
            return None
        self._unknown_in_a_row += 1
        if self._unknown_in_a_row < UNKNOWN_IN_A_ROW:
            return None
        reason = f"the outcome of {UNKNOWN_IN_A_ROW} messages in a row is unknown (last: {error}); the rest waits"
        return _stopped(StageEnd.OUTCOMES_UNKNOWN, reason)

    def _settle_refusal(self, item: Item, error: RecipientRefusedError, *, address: str) -> StageStop | None:
        """Store a refusal. Five in a row end the stage and are all undone, because the server is at fault."""
        answer = self.queue.refuse(item, error, address=address)
        self.counts.lost += answer is Answer.LOST
        if answer is Answer.SETTLED:
            self.counts.failed += 1
            self._refused.append(item)
        if len(self._refused) < REFUSALS_IN_A_ROW:
            return None
        delay_seconds = seconds_to_next_round(max(item.attempts for item in self._refused))
        self.queue.reopen_refused(self._refused, delay_seconds=delay_seconds)
        self.counts.failed -= len(self._refused)
        self._refused.clear()
        reason = f"{REFUSALS_IN_A_ROW} messages in a row were refused (last: {error}); they and the rest stay pending"
        return _stopped(StageEnd.ALL_REFUSED, reason)

    def _reset(self) -> None:
        self._refused.clear()
        self._unknown_in_a_row = 0


def _stopped(code: StageEnd, reason: str, *, fault: str = "") -> StageStop:
    return StageStop(stage="mail", code=code, reason=reason, fault=fault)


def _log(message: OutgoingMessage, event: str, **about: str) -> None:
    """Log the outcome of one message with its ids only."""
    if logger.isEnabledFor(logging.DEBUG):
        ids = {"kind": message.kind, "message_key": message.idempotency_key, "mentor_id": message.mentor_id}
        known = {name: str(value) for name, value in ids.items() if value is not None}
        logger.debug("a %s", event.replace("_", " "), extra={"event": event} | known | about)
