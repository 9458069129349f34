"""Digests as the mail stage takes them: read, and written in the coordinator's language, when they are sent."""

from collections.abc import Callable, Sequence
from datetime import tzinfo
from typing import Any

from certjob.domain.alert_reasons import AlertReason, why_message_waits, why_push_waits
from certjob.errors import FailureCode, TemplateError
from certjob.mail.digest_contents import Digest, PendingPush
from certjob.mail.digests import CoordinatorDigestService, QueuedDigest
from certjob.mail.message import OutgoingMessage, message_id
from certjob.mail.messages import OUR_TEMPLATES, Templates, clean, language_of, write_date, write_moment
from certjob.mail.stage import Draft
from certjob.outbox.claims import Answer, Lease

MOST_LINES = 50
"""A section names so many, and says how many more there are."""


class DigestMail:
    """The mail stage's queue of digests."""

    def __init__(
        self,
        service: CoordinatorDigestService,
        *,
        domain: str,
        zone: tzinfo,
        templates: Callable[[], Templates] = lambda: OUR_TEMPLATES,
    ) -> None:
        """``domain`` is the right side of every Message-ID; times are written in ``zone``.

        ``templates`` is asked when there is a message to write.
        """
        self._service = service
        self._domain = domain
        self._zone = zone
        self._templates = templates
        self._told: dict[int, Digest] = {}

    def claim(self) -> tuple[list[QueuedDigest], Lease]:
        """Claim due digests, committed on return."""
        return self._service.claim()

    def release(self, items: Sequence[QueuedDigest]) -> None:
        """Give claimed digests back; their attempts were none."""
        self._service.release(items)

    def draft(self, item: QueuedDigest) -> Draft:
        """Read what there is to tell by now, and write it."""
        digest = self._service.read(item)
        if digest is None:
            return Draft(cancelled="")
        if not digest.has_news:
            return Draft(cancelled="nothing to tell")
        self._told[item.id] = digest
        try:
            return Draft(message=self._message(item, digest, self._templates()))
        except TemplateError as error:
            return Draft(message=self._message(item, digest, OUR_TEMPLATES), broken_template=str(error))

    def settle(
        self,
        item: QueuedDigest,
        status: str,
        *,
        error: str | None = None,
        code: FailureCode | None = None,
        delay_seconds: float = 0.0,
        uncount: bool = False,
        maybe_sent: bool = False,
    ) -> bool:
        """Write what became of a digest, and of a sent one how far it told."""
        told = self._told.pop(item.id, None)
        return self._service.settle(
            item,
            status,
            error=error,
            code=code,
            delay_seconds=delay_seconds,
            uncount=uncount,
            maybe_sent=maybe_sent,
            told=told if status == "sent" else None,
        )

    def cancel(self, item: QueuedDigest) -> Answer:
        """Cancel a digest that has nothing to tell, if that is still so."""
        return self._service.cancel(item)

    def fail(self, item: QueuedDigest, *, error: str, code: FailureCode, address: str, uncount: bool = False) -> Answer:
        """Fail a digest if the address is still the coordinator's."""
        self._told.pop(item.id, None)
        return self._service.fail(item, error=error, code=code, address=address, uncount=uncount)

    def reopen_refused(self, items: Sequence[QueuedDigest], *, delay_seconds: float) -> None:
        """Put digests that were refused and should not be failed back to pending."""
        self._service.reopen_refused(items, delay_seconds=delay_seconds)

    def _message(self, item: QueuedDigest, digest: Digest, templates: Templates) -> OutgoingMessage:
        coordinator = digest.coordinator
        rendered = templates.render(
            "digest",
            language=language_of(coordinator.locale),
            slug=coordinator.organisation_slug,
            words=digest_words(digest, repeat=item.maybe_sent, zone=self._zone),
        )
        # The same page again has the same key. One that tells more must not be dropped as a copy of it.
        key = f"digest-{coordinator.id}-{item.digest_on:%Y%m%d}-{digest.fingerprint}"
        return OutgoingMessage(
            to=coordinator.email,
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
            message_id=message_id(key, domain=self._domain),
            idempotency_key=key,
            locale=coordinator.locale,
            kind="digest",
            repeat=item.maybe_sent,
        )


def digest_words(digest: Digest, *, repeat: bool, zone: tzinfo) -> dict[str, Any]:
    """Return what a digest's templates can use, by name; nothing in it can break a line or turn the text around."""
    locale = digest.coordinator.locale

    def reason_words(reason: AlertReason, error: str | None) -> dict[str, str]:
        return {"reason": reason.for_mail(language_of(locale)), "technical": clean(reason.technical(error))}

    def push(pending: PendingPush) -> dict[str, Any]:
        return {
            "name": clean(pending.name),
            "member_no": clean(pending.member_no),
            "since": write_moment(pending.wanted_at.astimezone(zone), locale=locale),
            "sentence": pending.sentence,
            "error": clean(pending.error),
            **reason_words(why_push_waits(pending), pending.error),
        }

    return {
        "language": language_of(locale),
        "most": MOST_LINES,
        "name": clean(digest.coordinator.full_name),
        "organisation": clean(digest.coordinator.organisation_name),
        "repeat": repeat,
        "visible": [push(pending) for pending in digest.pending if not pending.visible],
        "hidden": [push(pending) for pending in digest.pending if pending.visible],
        "paused": [
            {
                "name": clean(mentor.name),
                "member_no": clean(mentor.member_no),
                "reopened": mentor.reopened,
                "lapses": [
                    {
                        "kind": clean(lapse.kind),
                        "ended_on": write_date(lapse.ended_on, locale=locale) if lapse.ended_on else "",
                    }
                    for lapse in mentor.lapses
                ],
            }
            for mentor in digest.paused
        ],
        "returned": [
            {
                "name": clean(mentor.name),
                "member_no": clean(mentor.member_no),
                "still_paused": mentor.still_paused,
                "without_certificate": mentor.without_certificate,
            }
            for mentor in digest.returned
        ],
        "undelivered": [
            {
                "name": clean(mail.name),
                "member_no": clean(mail.member_no),
                "expires_on": write_date(mail.expires_on, locale=locale),
                "error": clean(mail.error),
                **reason_words(why_message_waits(mail.code), mail.error),
            }
            for mail in digest.undelivered
        ],
        "expiring": [
            {
                "name": clean(certificate.name),
                "member_no": clean(certificate.member_no),
                "kind": clean(certificate.kind),
                "expires_on": write_date(certificate.expires_on, locale=locale),
                "days_left": certificate.days_left,
            }
            for certificate in digest.expiring
        ],
    }
