"""The mail stage of a night: one message at a time, each settled before the next one is sent.

    claim → draft → send → settle

What the messages are, reminders or digests, is their queue's business; whose fault a failure is, and what follows from
it, is decided here, once for both.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from certjob.errors import (
    ChannelDownError,
    NotifyError,
    OutcomeUnknownError,
    RecipientRefusedError,
    StageEnd,
)
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.queue import MailQueue
from certjob.outbox.calls import Calls
from certjob.outbox.claims import RELEASED, Answer, Item, Lease, Settlement, StageStop
from certjob.outbox.retry import RetryPolicy, exponential, seconds_to_next_round
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

REFUSALS_IN_A_ROW = 5
UNKNOWN_IN_A_ROW = 3
CHANNEL_TRIES = 3

_DEADLINE = StageStop(
    stage="mail", code=StageEnd.DEADLINE, reason="the time for deliveries is over; the rest stays pending"
)


@dataclass(slots=True, kw_only=True)
class MailCounts:
    """What the stage did, for the report."""

    sent: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0


class MailStage(Generic[Item]):
    """Sends what is due in a queue until none is left, the deadline comes, or the channel turns out to be down."""

    def __init__(
        self,
        queue: MailQueue[Item],
        *,
        channel: Channel,
        calls: Calls,
        stop: StopFlag,
        on_progress: Callable[[int], None] | None = None,
        is_open: Callable[[], bool] = lambda: True,
        counts: MailCounts,
    ) -> None:
        self._queue = queue
        self._channel = channel
        self._calls = calls
        self._stop = stop
        self._on_progress = on_progress
        self._is_open = is_open
        self._refused: list[Item] = []
        self._unknown_in_a_row = 0
        self._tries = RetryPolicy(
            max_attempts=CHANNEL_TRIES,
            backoff=exponential(base_seconds=0.5, cap_seconds=5),
            deadline_seconds=120,
            is_transient=lambda error: isinstance(error, ChannelDownError),
            retry_after=lambda error: error.retry_after_seconds if isinstance(error, ChannelDownError) else None,
        )
        self._counts = counts

    def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Send; return why the stage ended early, or None. Raises StoppedBySignalError after a signal.

        That it was not open is nobody's concern: what waits goes out when it is.
        """
        deadline_at = time.monotonic() + deadline_seconds
        while True:
            self._stop.check()
            if not self._is_open():
                return None
            item, lease, message = self._next()
            if item is None:
                return None
            early: StageStop | None = None
            if self._stop.is_set() or time.monotonic() >= deadline_at:
                early = _DEADLINE
                if message is not None:
                    self._queue.settle(item, RELEASED)
            elif message is not None:
                early = self._deliver(item, lease, message)
            if early is not None:
                self._stop.check()  # a signal cuts the tries short, and is what ended the stage
                return early

    def _deliver(self, item: Item, lease: Lease, message: OutgoingMessage) -> StageStop | None:
        """Send and settle one message; it keeps its lease if anything unforeseen happens."""
        try:
            self._calls.make(self._send(message, lease))
        except ChannelDownError as error:  # it was surely not handed over, and comes after all others the next time
            self._queue.settle(item, RELEASED)
            return StageStop(
                stage="mail", code=StageEnd.CHANNEL_DOWN, reason=f"{error}; the rest stays pending", fault=str(error)
            )
        except NotifyError as error:
            return self._settle_failure(item, error, message.to)
        self._settle_sent(item)
        return None

    def _next(self) -> tuple[Item | None, Lease, OutgoingMessage | None]:
        """Claim a row and write its message from the facts of this moment; without one, the row says why."""
        item, lease = self._queue.claim()
        draft = self._queue.draft(item) if item is not None else None
        if isinstance(draft, Settlement):
            self._counts.cancelled += draft.status == "cancelled"
            self._counts.failed += draft.status == "failed"
            draft = None
        return item, lease, draft

    async def _send(self, message: OutgoingMessage, lease: Lease) -> None:
        """Hand one message over, with three tries while it is everybody's fault, none that could outlast the lease."""

        async def attempt() -> None:
            if not lease.fits(self._channel.worst_case_seconds):
                unfit = "a message can take longer than its lease, or this process stood still"
                raise ChannelDownError(unfit)
            await self._channel.send(message)

        try:
            await self._tries.call(attempt, stop=self._calls.stopped)
        except NotifyError as error:
            _log(message, "message_not_sent", cause=type(error).__name__)
            raise
        _log(message, "message_sent")

    def _settle_sent(self, item: Item) -> None:
        self._refused.clear()
        self._unknown_in_a_row = 0
        answer = self._queue.settle(item, Settlement(status="sent"))
        self._counts.sent += answer is Answer.SETTLED
        self._counts.lost += answer is Answer.LOST
        if self._on_progress:
            self._on_progress(self._counts.sent)

    def _settle_failure(self, item: Item, error: NotifyError, address: str) -> StageStop | None:
        """Write whose fault it was; too many of one kind in a row are the server's and end the stage."""
        if isinstance(error, RecipientRefusedError):
            return self._settle_refusal(item, error, address=address)
        maybe_sent = isinstance(error, OutcomeUnknownError)
        later = Settlement(
            status="pending",
            error=str(error),
            code=error.code,
            delay_seconds=seconds_to_next_round(item.attempts),
            maybe_sent=maybe_sent,
        )
        self._counts.lost += self._queue.settle(item, later) is Answer.LOST
        if not maybe_sent:
            self._refused.clear()
            self._unknown_in_a_row = 0
            return None
        self._unknown_in_a_row += 1
        if self._unknown_in_a_row < UNKNOWN_IN_A_ROW:
            return None
        reason = f"the outcome of {UNKNOWN_IN_A_ROW} messages in a row is unknown (last: {error}); the rest waits"
        return StageStop(stage="mail", code=StageEnd.OUTCOMES_UNKNOWN, reason=reason)

    def _settle_refusal(self, item: Item, error: RecipientRefusedError, *, address: str) -> StageStop | None:
        """Note a refusal for good. Five in a row are the server's fault: then none of them is for good."""
        answer = self._queue.refuse(item, error, address=address)
        self._counts.lost += answer is Answer.LOST
        if answer is Answer.SETTLED:
            self._counts.failed += 1
            self._refused.append(item)
        if len(self._refused) < REFUSALS_IN_A_ROW:
            return None
        delay_seconds = seconds_to_next_round(max(item.attempts for item in self._refused))
        self._queue.reopen_refused(self._refused, delay_seconds=delay_seconds)
        self._counts.failed -= len(self._refused)
        self._refused.clear()
        reason = f"{REFUSALS_IN_A_ROW} messages in a row were refused (last: {error}); they and the rest stay pending"
        return StageStop(stage="mail", code=StageEnd.ALL_REFUSED, reason=reason)


def _log(message: OutgoingMessage, event: str, **about: str) -> None:
    """Note what became of one message, by its ids alone."""
    if logger.isEnabledFor(logging.DEBUG):
        ids = {"kind": message.kind, "message_key": message.idempotency_key, "mentor_id": message.mentor_id}
        known = {name: str(value) for name, value in ids.items() if value is not None}
        logger.debug("a %s", event.replace("_", " "), extra={"event": event} | known | about)
