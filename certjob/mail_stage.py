"""The mail stage of a night: one message at a time, each settled before the next one is sent."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from certjob.errors import (
    ChannelDownError,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
)
from certjob.mail import parse_address, parse_sender
from certjob.messages import ReminderContent, render_reminder
from certjob.notify import Channel, OutgoingMessage
from certjob.outbox import Lease
from certjob.reminders import (
    CertificationReminderService,
    QueuedReminder,
    Recipient,
    retry_delay_seconds,
)
from certjob.retry import RetryPolicy, exponential
from certjob.stages import StageStop
from certjob.stopping import StopFlag

REFUSALS_IN_A_ROW = 5
UNKNOWN_IN_A_ROW = 3
CHANNEL_TRIES = 3


@dataclass(slots=True, kw_only=True)
class ReminderCounts:
    """What the stage did, for the report."""

    sent: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0


class MailStage:
    """Sends the due reminders until none is left, the deadline comes, or the channel turns out to be down."""

    def __init__(
        self,
        service: CertificationReminderService,
        *,
        channel: Channel,
        mail_from: str | None,
        today: date,
        stop: StopFlag,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self._service = service
        self._channel = channel
        self._domain = _domain_of(mail_from)
        self._today = today
        self._stop = stop
        self._on_progress = on_progress
        self._refused: list[QueuedReminder] = []
        self._unknown_in_a_row = 0
        self._tries = RetryPolicy(
            max_attempts=CHANNEL_TRIES,
            backoff=exponential(base_seconds=0.5, cap_seconds=5),
            deadline_seconds=120,
            is_transient=lambda error: isinstance(error, ChannelDownError),
        )
        self.counts = ReminderCounts()

    def run(self, *, deadline_seconds: float) -> StageStop | None:
        """Send; return why the stage ended early, or None. Raises StoppedBySignalError after a signal."""
        deadline_at = time.monotonic() + deadline_seconds
        while True:
            self._stop.check()
            reminders, lease = self._service.claim()
            if not reminders:
                return None
            stopped = self._send_batch(reminders, lease, deadline_at)
            if stopped is not None:
                self._stop.check()  # a signal cuts the tries short, and is what ended the stage
                return stopped

    def _send_batch(self, reminders: list[QueuedReminder], lease: Lease, deadline_at: float) -> StageStop | None:
        """Send a claimed batch; what is not begun is released."""
        rest = deque(reminders)
        unsent: list[QueuedReminder] = []
        try:
            while rest:
                self._stop.check()
                if time.monotonic() >= deadline_at:
                    return StageStop(
                        stage="mail", code="deadline", reason="the time for deliveries is over; the rest stays pending"
                    )
                if not lease.fits(self._channel.worst_case_seconds):
                    if len(rest) < len(reminders):
                        return None
                    reason = "the lease is shorter than a message can take, or this process stood still; the rest waits"
                    return StageStop(stage="mail", code="lease", reason=reason)
                reminder = rest.popleft()  # from here on it keeps its lease if anything unforeseen happens
                stopped = self._handle(reminder, lease)
                if stopped is not None:
                    unsent = [reminder] if stopped.code == "down" else []  # it was surely not handed over
                    return stopped
        finally:
            self._service.release(list(rest))
            # Later than the others: should it be this message that makes the server hang up, the next stage begins
            # with another one.
            self._service.release(unsent)
        return None

    def _handle(self, reminder: QueuedReminder, lease: Lease) -> StageStop | None:
        """Check, send and settle one reminder."""
        recipient = self._service.recipient(reminder)
        if recipient is None:  # the mentor and with it the row were deleted under the claim
            self.counts.cancelled += 1
            return None
        reason = self._service.cancel_reason(reminder, recipient, self._today)
        if reason is not None:
            self.counts.cancelled += self._service.settle(reminder, "cancelled", error=reason, uncount=True)
            return None
        address = recipient.email or ""
        problem = _address_problem(address)
        if problem is not None:  # no server is asked, and none is to blame
            self.counts.failed += self._service.settle(reminder, "failed", error=problem, uncount=True)
            return None
        try:
            message = self._message(reminder, recipient, address)
            if not lease.fits(self._channel.worst_case_seconds):  # a locked table has kept the reading above waiting
                self._service.release([reminder])
                return None
            self._send(message, lease)
        except ChannelDownError as error:
            return StageStop(stage="mail", code="down", reason=f"{error}; the rest stays pending")
        except RecipientRefusedError as error:
            return self._settle_refusal(reminder, error, address=address)
        except NotifyError as error:
            return self._settle_failure(reminder, error)
        self._refused.clear()
        self._unknown_in_a_row = 0
        self.counts.sent += self._settle(reminder, "sent")
        if self._on_progress:
            self._on_progress(self.counts.sent)
        return None

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

        self._tries.call(attempt, stop=self._stop)

    def _settle(
        self,
        reminder: QueuedReminder,
        status: str,
        *,
        error: NotifyError | None = None,
        delay_seconds: float = 0.0,
        maybe_sent: bool = False,
    ) -> bool:
        """Write what became of a message that the channel was asked to take; a lost lease is counted."""
        text = None if error is None else str(error)
        held = self._service.settle(reminder, status, error=text, delay_seconds=delay_seconds, maybe_sent=maybe_sent)
        self.counts.lost += not held
        return held

    def _settle_failure(self, reminder: QueuedReminder, error: NotifyError) -> StageStop | None:
        """Put it off: the recipient is deferred, or nobody knows whether the message arrived."""
        delay_seconds = retry_delay_seconds(reminder.attempts)
        if isinstance(error, RecipientDeferredError):
            self._refused.clear()
            self._unknown_in_a_row = 0
            self._settle(reminder, "pending", error=error, delay_seconds=delay_seconds)
            return None
        if not isinstance(error, OutcomeUnknownError):
            raise error
        self._unknown_in_a_row += 1
        self._settle(reminder, "pending", error=error, delay_seconds=delay_seconds, maybe_sent=True)
        if self._unknown_in_a_row < UNKNOWN_IN_A_ROW:
            return None
        reason = f"the outcome of {UNKNOWN_IN_A_ROW} messages in a row is unknown (last: {error}); the rest waits"
        return StageStop(stage="mail", code="unknown", reason=reason)

    def _settle_refusal(
        self, reminder: QueuedReminder, error: RecipientRefusedError, *, address: str
    ) -> StageStop | None:
        """Note a refusal for good; so many in a row are the server's fault, and none of these is for good."""
        held = self._settle(reminder, "failed", error=error)
        now = self._service.recipient(reminder)
        if held and now is not None and now.email != address:
            # Corrected before the row was failed, so that the correction did not reopen it: the new address is tried.
            self._service.reopen_refused([reminder], delay_seconds=0)
            return None
        if held:
            self.counts.failed += 1
            self._refused.append(reminder)
        if len(self._refused) < REFUSALS_IN_A_ROW:
            return None
        self._service.reopen_refused(self._refused)
        self.counts.failed -= len(self._refused)
        self._refused.clear()
        reason = f"{REFUSALS_IN_A_ROW} messages in a row were refused (last: {error}); they and the rest stay pending"
        return StageStop(stage="mail", code="refused", reason=reason)

    def _message(self, reminder: QueuedReminder, recipient: Recipient, address: str) -> OutgoingMessage:
        mentor = recipient.mentor
        certificate = recipient.certificate(reminder.cert_id)
        kind = certificate.kind if certificate else ""
        rendered = render_reminder(
            ReminderContent(
                full_name=recipient.full_name,
                member_no=mentor.member_no,
                kind=kind,
                expires_on=reminder.expires_on,
                days_left=(reminder.expires_on - self._today).days,
                threshold_days=reminder.threshold_days,
                pauses=kind not in mentor.organisation.optional_kinds,
                paused=recipient.paused,
                organisation_name=recipient.organisation_name,
                contact_email=recipient.contact_email,
                contact_phone=recipient.contact_phone,
                renewal_url=recipient.renewal_url,
                locale=recipient.locale,
                repeat=reminder.maybe_sent,
            )
        )
        key = f"reminder-{reminder.id}-{reminder.cycle}"
        return OutgoingMessage(
            to=address,
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
            message_id=f"<certjob-{key}@{self._domain}>",
            idempotency_key=key,
            locale=recipient.locale,
            kind="reminder",
            mentor_id=mentor.id,
            threshold_days=reminder.threshold_days,
            expires_on=reminder.expires_on,
            repeat=reminder.maybe_sent,
        )


def _domain_of(mail_from: str | None) -> str:
    """The right side of every Message-ID; a channel that needs a sender has checked it already."""
    try:
        return parse_sender(mail_from or "").domain
    except ValueError:
        return "certjob.invalid"


def _address_problem(address: str) -> str | None:
    """Return why no message can go to this address, or None."""
    if not address:
        return "no address"
    try:
        parse_address(address)
    except ValueError as error:
        return f"the e-mail address {error}; correct it"
    return None
