"""Messages to a webhook, which turns them into push or in-app messages."""

from datetime import UTC, date, datetime
from urllib.parse import urlsplit
from uuid import UUID

import httpx
from pydantic import SecretStr

from certjob.errors import (
    ChannelDownError,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
)
from certjob.mail.channels.server_text import readable
from certjob.mail.message import OutgoingMessage
from certjob.outbox.http_client import SURELY_NOT_SENT, HttpClient
from certjob.outbox.retry import parse_retry_after

REFUSED_CODES = frozenset({400, 422})
"""The receiver understood this message and will not take it."""

DEFERRED_CODES = frozenset({408, 409, 425})
"""Later, please, for this message; 409 is what receivers say while they work on the same Idempotency-Key."""


TOLD = ("kind", "to", "locale", "subject", "text", "html", "mentor_id", "threshold_days", "expires_on", "repeat")
"""What of a message the receiver gets; only a reminder has all of it."""


class WebhookChannel:
    """An HTTP address that takes one message per POST."""

    worst_case_seconds = 30.0
    """The deadline of a whole call, however slowly the receiver answers."""

    def __init__(self, url: str, *, token: SecretStr | None = None) -> None:
        """Prepare; nothing is opened before the first ``send``."""
        self._url = url
        self._token = token
        self._client: HttpClient | None = None

    async def send(self, message: OutgoingMessage) -> None:
        """Post one message, in one try; see ``Channel.send``."""
        headers = {"Idempotency-Key": message.idempotency_key}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        self._client = self._client or HttpClient()
        try:
            answer = await self._client.request(
                "POST",
                self._url,
                json=_document(message),
                headers=headers,
                deadline_seconds=self.worst_case_seconds,
                max_body_bytes=0,  # the body is of no use, and could be endless
            )
        except httpx.InvalidURL as error:
            text = "CERTJOB_NOTIFY_URL is not a URL that can be called"
            raise ChannelDownError(text, next_step="correct it") from error
        except SURELY_NOT_SENT as error:
            text = f"the webhook cannot be reached: {_reason(error)}"
            raise ChannelDownError(text, next_step="check CERTJOB_NOTIFY_URL") from error
        except httpx.TransportError as error:
            text = f"no answer came from the webhook, so the message may have arrived: {_reason(error)}"
            raise OutcomeUnknownError(text) from error
        if not 200 <= answer.status_code < 300:
            asked = parse_retry_after(answer.headers.get("Retry-After"), now=datetime.now(UTC))
            raise _refusal(answer.status_code, retry_after_seconds=asked)

    async def probe(self) -> str:
        """Nothing but a message can try it; see ``Channel.probe``."""
        scheme = urlsplit(self._url).scheme
        return f"a webhook ({scheme}), which only a message can try; --send-test ADDRESS sends one"

    async def close(self) -> None:
        """Close the kept connection; see ``Channel.close``."""
        if self._client is not None:
            await self._client.close()
        self._client = None


def _document(message: OutgoingMessage) -> dict[str, str | int | bool]:
    values = {name: getattr(message, name) for name in TOLD}
    return {
        name: str(value) if isinstance(value, UUID | date) else value
        for name, value in values.items()
        if value is not None
    }


def _refusal(code: int, *, retry_after_seconds: float | None) -> NotifyError:
    """Return the error that says whose fault a failure with this status is."""
    if code in REFUSED_CODES:
        return RecipientRefusedError(f"the webhook refused the message ({code})")
    if code in DEFERRED_CODES:
        return RecipientDeferredError(f"the webhook put the message off ({code})")
    if code == 429 or (code == 503 and retry_after_seconds is not None):
        message = f"the webhook cannot take messages now ({code})"
        return ChannelDownError(message, retry_after_seconds=retry_after_seconds)
    if code >= 500:  # it, or a proxy before it, failed at a moment that no one knows
        return OutcomeUnknownError(f"the webhook failed ({code}), so the message may have arrived")
    if code in {401, 403}:
        return ChannelDownError(f"the webhook refused the key ({code})", next_step="correct CERTJOB_NOTIFY_PASSWORD")
    if 300 <= code < 400:
        return ChannelDownError(
            f"the webhook redirects ({code}), which is not followed",
            next_step="put the final address into CERTJOB_NOTIFY_URL",
        )
    return ChannelDownError(
        f"the webhook is not there or does not take messages ({code})", next_step="check CERTJOB_NOTIFY_URL"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "it did not answer in time"
    if isinstance(error, httpx.LocalProtocolError):
        return "the request cannot be written"  # httpx's own text would quote the header, the key included
    return readable(str(error))
