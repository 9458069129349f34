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
from typing import Any

import httpx

from certjob import __version__
from certjob.outbox.calls import run_alone
from certjob.outbox.http_client import HttpClient
from certjob.stopping import StopFlag

TOTAL_SECONDS = 10.0
"""For one ping, with its one repeat."""
PAUSE_SECONDS = 0.5


def ping(url: str, counts: Mapping[str, Any], *, seconds: float, stop: StopFlag) -> str | None:
    """Call the address, and once more if that fails; return why the ping did not get through, None if it did.

    The reason holds nothing of the address, which is a secret.
    """
    return run_alone(_ping(url, counts, ends_at=time.monotonic() + seconds, stop=stop))


async def _ping(url: str, counts: Mapping[str, Any], *, ends_at: float, stop: StopFlag) -> str | None:
    async with HttpClient() as client:
        reason = await _post(client, url, counts, ends_at=ends_at)
        if reason is not None and time.monotonic() + PAUSE_SECONDS < ends_at and not stop.is_set():
            await asyncio.sleep(PAUSE_SECONDS)
            reason = await _post(client, url, counts, ends_at=ends_at)
        return reason


async def _post(client: HttpClient, url: str, counts: Mapping[str, Any], *, ends_at: float) -> str | None:
    try:
        answer = await client.request(
            "POST",
            url,
            headers={"User-Agent": f"certjob/{__version__}"},
            json=counts,
            deadline_seconds=max(ends_at - time.monotonic(), 0.05),
            max_body_bytes=0,
        )
    except httpx.TransportError as error:
        return _reason(error)
    if 200 <= answer.status_code < 300:
        return None
    hint = "" if answer.status_code == 429 or answer.status_code >= 500 else ", so it is not a ping address"
    return f"its host answered {answer.status_code}{hint}"


def _reason(error: httpx.TransportError) -> str:
    """Say what happened without the error's own text, which names the host."""
    if isinstance(error, httpx.TimeoutException):
        return "its host did not answer in time"
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return "its host's certificate is not trusted"
    if isinstance(error, httpx.ConnectError):
        return "its host cannot be reached"
    return "the connection to its host broke"
