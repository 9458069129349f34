"""The mail stage of a night: one message at a time, each settled before the next one is sent.

What the messages are, reminders or digests, is their queue's business; whose fault a failure is, and what follows from
it, is decided here, once for both.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from certjob.errors import (
    ChannelDownError,
    FailureCode,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
)
from certjob.mail.message import Channel, OutgoingMessage, parse_address
from certjob.outbox.claims import Answer, Lease, StageStop
from certjob.outbox.retry import RetryPolicy, exponential
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

REFUSALS_IN_A_ROW = 5
UNKNOWN_IN_A_ROW = 3
CHANNEL_TRIES = 3
FIRST_DELAY_SECONDS = 15 * 60.0
LONGEST_DELAY_SECONDS = 6 * 3600.0


class QueuedMail(Protocol):
    """A claimed row, of whatever table."""

    @property
    def attempts(self) -> int:
        """Claims that led to an attempt, this one included."""


Item = TypeVar("Item", bound=QueuedMail)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is to be sent for a claimed row, or why nothing is."""

    message: OutgoingMessage | None = None
    cancelled: str | None = None
    """It is not right any more; with the reason. Empty: the row itself is gone."""
    broken_template: str | None = None
    """Why the message is in certjob's own words instead of the programme's."""


class MailQueue(Protocol[Item]):
    """Claimed rows that become messages."""

    def claim(self) -> tuple[list[Item], Lease]:
        """Claim due rows, committed on return."""

    def release(self, items: Sequence[Item]) -> None:
        """Give claimed rows back; their attempts were none."""

    def draft(self, item: Item) -> Draft:
        """Write the message from the facts of this moment."""

    def settle(
        self,
        item: Item,
        status: str,
        *,
        error: str | None = None,
        code: FailureCode | None = None,
        delay_seconds: float = 0.0,
        uncount: bool = False,
        maybe_sent: bool = False,
    ) -> bool:
        """Write what became of a row, committed on return; False if its lease was lost."""

    def cancel(self, item: Item) -> Answer:
        """Cancel a row whose draft says so, if that is still true.

        SETTLED: cancelled. RAISED: it is right again, and pending. HELD: somebody is just changing what it is about; it
        is pending and due in a while.
        """

    def fail(self, item: Item, *, error: str, code: FailureCode, address: str, uncount: bool = False) -> Answer:
        """Fail a row that cannot go to this address, if it is still the recipient's.

        SETTLED: failed. RAISED: the address was corrected, the row is pending and due now. HELD: as for ``cancel``.
        """

    def reopen_refused(self, items: Sequence[Item], *, delay_seconds: float) -> None:
        """Put rows that were refused and should not be failed back to pending."""


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
        stop: StopFlag,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._queue = queue
        self._channel = channel
        self._stop = stop
        self._on_progress = on_progress
        self._refused: list[Item] = []
        self._unknown_in_a_row = 0
        self._broken_templates: list[str] = []
        self._tries = RetryPolicy(
            max_attempts=CHANNEL_TRIES,
            backoff=exponential(base_seconds=0.5, cap_seconds=5),
            deadline_seconds=120,
            is_transient=lambda error: isinstance(error, ChannelDownError),
            retry_after=lambda error: error.retry_after_seconds if isinstance(error, ChannelDownError) else None,
        )
        self.counts = MailCounts()

    def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Send; return why the stage ended early, or None. Raises StoppedBySignalError after a signal."""
        deadline_at = time.monotonic() + deadline_seconds
        while True:
            self._stop.check()
            items, lease = self._queue.claim()
            if not items:
                return self._template_stop()
            stopped = self._send_batch(items, lease, deadline_at)
            if stopped is not None:
                self._stop.check()  # a signal cuts the tries short, and is what ended the stage
                return stopped

    def _send_batch(self, items: list[Item], lease: Lease, deadline_at: float) -> StageStop | None:
        """Send a claimed batch; what is not begun is released."""
        rest = deque(items)
        unsent: list[Item] = []
        try:
            while rest:
                self._stop.check()
                if time.monotonic() >= deadline_at:
                    return StageStop(
                        stage="mail", code="deadline", reason="the time for deliveries is over; the rest stays pending"
                    )
                if not lease.fits(self._channel.worst_case_seconds):
                    if len(rest) < len(items):
                        return None
                    reason = "the lease is shorter than a message can take, or this process stood still; the rest waits"
                    return StageStop(stage="mail", code="lease", reason=reason)
                item = rest.popleft()  # from here on it keeps its lease if anything unforeseen happens
                stopped = self._handle(item, lease)
                if stopped is not None:
                    unsent = [item] if stopped.code == "down" else []  # it was surely not handed over
                    return stopped
        finally:
            self._queue.release(list(rest))
            # Later than the others: should it be this message that makes the server hang up, the next stage begins
            # with another one.
            self._queue.release(unsent)
        return None

    def _handle(self, item: Item, lease: Lease) -> StageStop | None:
        """Write, send and settle one message."""
        draft = self._queue.draft(item)
        message = draft.message
        if draft.broken_template is not None:
            self._broken_templates.append(draft.broken_template)
        if message is None:
            # An empty reason: the mentor and with it the row were deleted under the claim.
            self.counts.cancelled += not draft.cancelled or self._queue.cancel(item) is Answer.SETTLED
            return None
        problem = _address_problem(message.to)
        if problem is not None:  # no server is asked, and none is to blame
            error, code = problem
            answer = self._queue.fail(item, error=error, code=code, address=message.to, uncount=True)
            self.counts.failed += answer is Answer.SETTLED
            return None
        if not lease.fits(self._channel.worst_case_seconds):  # a locked table has kept the reading above waiting
            self._queue.release([item])
            return None
        try:
            self._send(message, lease)
        except ChannelDownError as error:
            return StageStop(stage="mail", code="down", reason=f"{error}; the rest stays pending")
        except RecipientRefusedError as error:
            return self._settle_refusal(item, error, address=message.to)
        except NotifyError as error:
            return self._settle_failure(item, error)
        self._refused.clear()
        self._unknown_in_a_row = 0
        self.counts.sent += self._settle(item, "sent")
        _log(message, "message_sent")
        if self._on_progress:
            self._on_progress(self.counts.sent)
        return None

    def _template_stop(self) -> StageStop | None:
        """Say which template broke, once everything else is done."""
        if not self._broken_templates:
            return None
        number = len(self._broken_templates)
        what = "1 message was" if number == 1 else f"{number:,} messages were"
        reason = f"{self._broken_templates[0]}; {what} written with certjob's own template instead"
        return StageStop(stage="mail", code="template", reason=reason)

    def _send(self, message: OutgoingMessage, lease: Lease) -> None:
        """Hand one message over, with three tries while it is everybody's fault."""
        first = True

        def attempt() -> None:
            nonlocal first
            if not first and not lease.fits(self._channel.worst_case_seconds):
                unfit = "the channel is too slow for another try"
                raise ChannelDownError(unfit)
            first = False
            self._channel.send(message)

        try:
            self._tries.call_blocking(attempt, stop=self._stop)
        except NotifyError as error:
            _log(message, "message_not_sent", cause=type(error).__name__)
            raise

    def _settle(
        self,
        item: Item,
        status: str,
        *,
        error: NotifyError | None = None,
        delay_seconds: float = 0.0,
        maybe_sent: bool = False,
    ) -> bool:
        """Write what became of a message that the channel was asked to take; a lost lease is counted."""
        held = self._queue.settle(
            item,
            status,
            error=None if error is None else str(error),
            code=None if error is None else error.code,
            delay_seconds=delay_seconds,
            maybe_sent=maybe_sent,
        )
        self.counts.lost += not held
        return held

    def _settle_failure(self, item: Item, error: NotifyError) -> StageStop | None:
        """Put it off: the recipient is deferred, or nobody knows whether the message arrived."""
        delay_seconds = retry_delay_seconds(item.attempts)
        if isinstance(error, RecipientDeferredError):
            self._refused.clear()
            self._unknown_in_a_row = 0
            self._settle(item, "pending", error=error, delay_seconds=delay_seconds)
            return None
        if not isinstance(error, OutcomeUnknownError):
            raise error
        self._unknown_in_a_row += 1
        self._settle(item, "pending", error=error, delay_seconds=delay_seconds, maybe_sent=True)
        if self._unknown_in_a_row < UNKNOWN_IN_A_ROW:
            return None
        reason = f"the outcome of {UNKNOWN_IN_A_ROW} messages in a row is unknown (last: {error}); the rest waits"
        return StageStop(stage="mail", code="unknown", reason=reason)

    def _settle_refusal(self, item: Item, error: RecipientRefusedError, *, address: str) -> StageStop | None:
        """Note a refusal for good; so many in a row are the server's fault, and none of these is for good."""
        answer = self._queue.fail(item, error=str(error), code=error.code, address=address)
        self.counts.lost += answer is Answer.LOST
        if answer is Answer.SETTLED:
            self.counts.failed += 1
            self._refused.append(item)
        if len(self._refused) < REFUSALS_IN_A_ROW:
            return None
        delay_seconds = retry_delay_seconds(max(item.attempts for item in self._refused))
        self._queue.reopen_refused(self._refused, delay_seconds=delay_seconds)
        self.counts.failed -= len(self._refused)
        self._refused.clear()
        reason = f"{REFUSALS_IN_A_ROW} messages in a row were refused (last: {error}); they and the rest stay pending"
        return StageStop(stage="mail", code="refused", reason=reason)


def _log(message: OutgoingMessage, event: str, **about: str) -> None:
    """Note what became of one message, by its ids alone."""
    if logger.isEnabledFor(logging.DEBUG):
        ids = {"kind": message.kind, "message_id": message.message_id, "mentor_id": message.mentor_id}
        known = {name: str(value) for name, value in ids.items() if value is not None}
        logger.debug("a %s", event.replace("_", " "), extra={"event": event} | known | about)


def retry_delay_seconds(attempts: int) -> float:
    """Seconds until a deferred message is tried again: 15 min, 30 min, … at most 6 h."""
    return float(min(FIRST_DELAY_SECONDS * 2 ** min(attempts - 1, 10), LONGEST_DELAY_SECONDS))


def _address_problem(address: str) -> tuple[str, FailureCode] | None:
    """Return why no message can go to this address, or None."""
    if not address:
        return "no address", FailureCode.NO_ADDRESS
    try:
        parse_address(address)
    except ValueError as error:
        return f"the e-mail address {error}; correct it", FailureCode.BAD_ADDRESS
    return None
