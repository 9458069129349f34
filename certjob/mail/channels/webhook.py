"""A channel that posts messages to a webhook, for example to send them as push messages."""

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
    RecipientRejectedError,
)
from certjob.mail.channels.server_text import readable
from certjob.mail.message import OutgoingMessage
from certjob.outbox.http_client import SURELY_NOT_SENT, HttpClient
from certjob.outbox.retry import parse_retry_after

REJECTED_CODES = frozenset({400, 422})
"""The receiver rejects this message permanently."""

DEFERRED_CODES = frozenset({408, 409, 425})
"""The receiver asks for a retry of this message; 409 means that it is still processing the same Idempotency-Key."""

FIELDS = ("kind", "to", "locale", "subject", "text", "html", "mentor_id", "threshold_days", "expires_on", "repeat")
"""The fields of a message that are posted, if they have a value. Digests have no mentor, threshold and date."""


class WebhookChannel:
    """Sends each message with one POST."""

    worst_case_seconds = 30.0
    """The deadline for a whole call, also if the receiver answers slowly."""

    def __init__(self, url: str, *, token: SecretStr | None = None) -> None:
        self._url = url
        self._token = token
        self._client: HttpClient | None = None

    async def send(self, message: OutgoingMessage) -> None:
        """Post one message in one attempt; see ``Channel.send``."""
        headers = {"Idempotency-Key": message.idempotency_key}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token.get_secret_value()}"
        values = {name: getattr(message, name) for name in FIELDS}
        self._client = self._client or HttpClient()
        try:
            answer = await self._client.request(
                "POST",
                self._url,
                json={
                    name: str(value) if isinstance(value, UUID | date) else value
                    for name, value in values.items()
                    if value is not None
                },
                headers=headers,
                deadline_seconds=self.worst_case_seconds,
                max_body_bytes=0,
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
            raise _rejection(answer.status_code, retry_after_seconds=asked)

    async def probe(self) -> str:
        """Return the scheme; see ``Channel.probe``. Only a message can test a webhook."""
        scheme = urlsplit(self._url).scheme
        return f"a webhook ({scheme}), which only a message can try; --send-test ADDRESS sends one"

    async def close(self) -> None:
        """Close the connection; see ``Channel.close``."""
        if self._client is not None:
            await self._client.close()
        self._client = None


def _rejection(code: int, *, retry_after_seconds: float | None) -> NotifyError:
    """Return the error for this status."""
    if code in REJECTED_CODES:
        return RecipientRejectedError(f"the webhook rejected the message ({code})")
    if code in DEFERRED_CODES:
        return RecipientDeferredError(f"the webhook deferred the message ({code})")
    if code == 429 or (code == 503 and retry_after_seconds is not None):
        message = f"the webhook cannot take messages now ({code})"
        return ChannelDownError(message, retry_after_seconds=retry_after_seconds)
    if code >= 500:  # it, or a proxy, may have failed after it passed the message on
        return OutcomeUnknownError(f"the webhook failed ({code}), so the message may have arrived")
    message, next_step = f"the webhook is not there or does not take messages ({code})", "check CERTJOB_NOTIFY_URL"
    if code in {401, 403}:
        message, next_step = f"the webhook rejected the key ({code})", "correct CERTJOB_NOTIFY_PASSWORD"
    if 300 <= code < 400:
        message = f"the webhook redirects ({code}), which is not followed"
        next_step = "put the final address into CERTJOB_NOTIFY_URL"
    return ChannelDownError(message, next_step=next_step)


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "it did not answer in time"
    if isinstance(error, httpx.LocalProtocolError):
        return "the request cannot be written"  # the text of httpx contains the header with the key
    return readable(str(error))
