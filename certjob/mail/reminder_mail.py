"""Reminders as the mail stage takes them: asked again, and written, from the facts of the moment."""

from collections.abc import Callable, Sequence
from datetime import date

from certjob.domain.models import Reminder
from certjob.errors import FailureCode, TemplateError
from certjob.mail.message import OutgoingMessage, message_id
from certjob.mail.messages import OUR_TEMPLATES, ReminderContent, Templates, render_reminder
from certjob.mail.reminders import CertificationReminderService, QueuedReminder, Recipient
from certjob.mail.stage import Draft
from certjob.outbox.claims import Answer, Lease


class ReminderMail:
    """The mail stage's queue of reminders."""

    def __init__(
        self,
        service: CertificationReminderService,
        *,
        today: date,
        domain: str,
        templates: Callable[[], Templates] = lambda: OUR_TEMPLATES,
    ) -> None:
        """``domain`` is the right side of every Message-ID; ``templates`` is asked when there is a message to write."""
        self._service = service
        self._today = today
        self._domain = domain
        self._templates = templates

    def claim(self) -> tuple[list[QueuedReminder], Lease]:
        """Claim due reminders, committed on return."""
        return self._service.claim(today=self._today)

    def release(self, items: Sequence[QueuedReminder]) -> None:
        """Give claimed reminders back; their attempts were none."""
        self._service.release(items)

    def draft(self, item: QueuedReminder) -> Draft:
        """Ask the rules again, then write the message."""
        recipient = self._service.recipient(item)
        if recipient is None:  # the mentor and with it the row were deleted under the claim
            return Draft(cancelled="")
        reason = self._service.cancel_reason(item, recipient, self._today)
        if reason is not None:
            return Draft(cancelled=reason)

        def write(templates: Templates) -> OutgoingMessage:
            return reminder_message(
                Reminder(cert_id=item.cert_id, threshold_days=item.threshold_days, expires_on=item.expires_on),
                recipient,
                key=reminder_key(item.id, cycle=item.cycle),
                repeat=item.maybe_sent,
                today=self._today,
                domain=self._domain,
                templates=templates,
            )

        try:
            return Draft(message=write(self._templates()))
        except TemplateError as error:  # other words are better than none in time
            return Draft(message=write(OUR_TEMPLATES), broken_template=str(error))

    def settle(
        self,
        item: QueuedReminder,
        status: str,
        *,
        error: str | None = None,
        code: FailureCode | None = None,
        delay_seconds: float = 0.0,
        uncount: bool = False,
        maybe_sent: bool = False,
    ) -> bool:
        """Write what became of a reminder, committed on return; False if its lease was lost."""
        return self._service.settle(
            item, status, error=error, code=code, delay_seconds=delay_seconds, uncount=uncount, maybe_sent=maybe_sent
        )

    def cancel(self, item: QueuedReminder) -> Answer:
        """Cancel a reminder if that is still right."""
        return self._service.cancel(item, today=self._today)

    def fail(
        self, item: QueuedReminder, *, error: str, code: FailureCode, address: str, uncount: bool = False
    ) -> Answer:
        """Fail a reminder if the address is still the mentor's."""
        return self._service.fail(item, error=error, code=code, address=address, uncount=uncount)

    def reopen_refused(self, items: Sequence[QueuedReminder], *, delay_seconds: float) -> None:
        """Put reminders that were refused and should not be failed back to pending."""
        self._service.reopen_refused(items, delay_seconds=delay_seconds)


def reminder_message(
    due: Reminder,
    recipient: Recipient,
    *,
    key: str,
    repeat: bool,
    today: date,
    domain: str,
    templates: Templates = OUR_TEMPLATES,
) -> OutgoingMessage:
    """Write the reminder for this recipient, with the days left on ``today``.

    ``key`` is the same on every repeat. Raises TemplateError when a template of the programme's breaks.
    """
    mentor = recipient.mentor
    certificate = recipient.certificate(due.cert_id)
    kind = certificate.kind if certificate else ""
    rendered = render_reminder(
        ReminderContent(
            full_name=recipient.full_name,
            member_no=mentor.member_no,
            kind=kind,
            expires_on=due.expires_on,
            days_left=(due.expires_on - today).days,
            threshold_days=due.threshold_days,
            pauses=kind not in mentor.organisation.optional_kinds,
            paused=recipient.paused,
            organisation_name=recipient.organisation_name,
            contact_email=recipient.contact_email,
            contact_phone=recipient.contact_phone,
            renewal_url=recipient.renewal_url,
            locale=recipient.locale,
            repeat=repeat,
            organisation_slug=mentor.organisation.slug,
        ),
        templates=templates,
    )
    return OutgoingMessage(
        to=recipient.email or "",
        subject=rendered.subject,
        text=rendered.text,
        html=rendered.html,
        message_id=message_id(key, domain=domain),
        idempotency_key=key,
        locale=recipient.locale,
        kind="reminder",
        mentor_id=mentor.id,
        threshold_days=due.threshold_days,
        expires_on=due.expires_on,
        repeat=repeat,
        reply_to=recipient.contact_email,
    )


def reminder_key(log_id: int, *, cycle: int) -> str:
    """Return what a reminder is known by outside: the same on every repeat, another one after an extension."""
    return f"reminder-{log_id}-{cycle}"
