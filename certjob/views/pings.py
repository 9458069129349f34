"""Pings to an external monitor that notices when they stop: healthchecks.io, or a server that speaks like it.

    POST <CERTJOB_PING_URL>/start?rid=<run id>     the run has begun
    POST <CERTJOB_PING_URL>?rid=<run id>           it ended with exit code 0
    POST <CERTJOB_PING_URL>/<code>?rid=<run id>    it ended with another exit code

With a second check the first one hears only whether the run did its work: exit 3 is a success to it, too.

    POST <CERTJOB_ATTENTION_PING_URL>?rid=<run id>        exit 0: nothing needs attention
    POST <CERTJOB_ATTENTION_PING_URL>/fail?rid=<run id>   exit 3: someone has to act

Source: https://healthchecks.io/docs/http_api/. The body is a JSON document of counts.
"""

import asyncio
import time
from collections.abc import Mapping
from threading import Event
from typing import Any
from uuid import UUID

import httpx
from pydantic import SecretStr

from certjob import __version__
from certjob.outbox.http_client import HttpClient
from certjob.outbox.loop import run_alone

TOTAL_SECONDS = 10.0
"""For one ping, with its one repeat."""
PAUSE_SECONDS = 0.5


class PingError(Exception):
    """A ping did not get through; its text holds nothing of the address, which is the secret."""


class _UnansweredError(PingError):
    """Worth one repeat."""


class Pinger:
    """Pings one check about one run. Nothing of it concerns the run itself."""

    def __init__(self, url: SecretStr, *, run_id: UUID) -> None:
        self._url = url
        self._run_id = run_id

    def start(self, *, stop: Event | None = None) -> None:
        """Say that the run has begun. Raises PingError."""
        self._send("/start", {}, seconds=TOTAL_SECONDS, stop=stop)

    def end(self, how: str, counts: Mapping[str, Any], *, seconds: float = TOTAL_SECONDS) -> None:
        """Say how the run ended: nothing for a success, else what is appended to the address. Raises PingError."""
        self._send(f"/{how}" if how else "", counts, seconds=seconds)

    def _send(self, suffix: str, counts: Mapping[str, Any], *, seconds: float, stop: Event | None = None) -> None:
        url = f"{self._url.get_secret_value().rstrip('/')}{suffix}?rid={self._run_id}"
        run_alone(_ping(url, counts, ends_at=time.monotonic() + seconds, stop=stop))


async def _ping(url: str, counts: Mapping[str, Any], *, ends_at: float, stop: Event | None) -> None:
    async with HttpClient() as client:
        try:
            await _post(client, url, counts, ends_at=ends_at)
        except _UnansweredError:
            if time.monotonic() + PAUSE_SECONDS >= ends_at or (stop is not None and stop.is_set()):
                raise
            await asyncio.sleep(PAUSE_SECONDS)
            await _post(client, url, counts, ends_at=ends_at)


async def _post(client: HttpClient, url: str, counts: Mapping[str, Any], *, ends_at: float) -> None:
    try:
        answer = await client.request(
            "POST",
            url,
            headers={"User-Agent": f"certjob/{__version__}"},
            json=counts,
            deadline_seconds=max(ends_at - time.monotonic(), 0.05),
            max_body_bytes=0,
        )
    except httpx.InvalidURL:
        message = "it is not a URL that can be called"
        raise PingError(message) from None
    except httpx.TransportError as error:
        raise _UnansweredError(_reason(error)) from None
    if answer.status_code == 429 or answer.status_code >= 500:
        message = f"its host answered {answer.status_code}"
        raise _UnansweredError(message)
    if not 200 <= answer.status_code < 300:
        message = f"its host answered {answer.status_code}, so it is not a ping address"
        raise PingError(message)


def _reason(error: httpx.TransportError) -> str:
    """Say what happened without the texts of others, which name the host."""
    if isinstance(error, httpx.TimeoutException):
        return "its host did not answer in time"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its host's certificate is not trusted"
    if isinstance(error, httpx.ConnectError):
        return "its host cannot be reached"
    return "the connection to its host broke"
