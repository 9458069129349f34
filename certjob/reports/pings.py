"""The ping at the end of a run, to a monitor that alarms if no ping arrives, such as healthchecks.io.

    POST <CERTJOB_PING_URL>?rid=<run id>        exit 0 or 3: the run did its work
    POST <CERTJOB_PING_URL>/fail?rid=<run id>   exit 1 or 2

Source: https://healthchecks.io/docs/http_api/. A failed ping is only a warning.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any
from uuid import UUID

import httpx

from certjob import __version__
from certjob.outbox.calls import run_alone
from certjob.outbox.http_client import HttpClient
from certjob.stopping import StopFlag

TOTAL_SECONDS = 10.0
"""The limit for a ping and its one repeat."""
AFTER_A_SIGNAL_SECONDS = 1.0
"""The limit after a signal."""
PAUSE_SECONDS = 0.5


def ping(
    address: str,
    exit_code: int,
    *,
    run_id: UUID,
    about: Mapping[str, Any],
    stop: StopFlag,
    warn: Callable[[str], None],
) -> None:
    """Report the exit code of a run, and ``about``: numbers and codes, without data about people.

    ``warn`` gets a line without the address, which is secret.
    """
    how = "" if exit_code in (0, 3) else "/fail"
    url = f"{address.rstrip('/')}{how}?rid={run_id}"
    ends_at = time.monotonic() + (AFTER_A_SIGNAL_SECONDS if stop.is_set() else TOTAL_SECONDS)
    try:
        reason = run_alone(_ping(url, {"exit_code": exit_code, **about}, ends_at=ends_at, stop=stop))
    except Exception as error:  # noqa: BLE001 - a ping must not fail the run
        reason = type(error).__name__  # its text could quote the address
    if reason is not None:
        warn(f"the ping to CERTJOB_PING_URL failed: {reason}; the run itself is not affected")


async def _ping(url: str, body: Mapping[str, Any], *, ends_at: float, stop: StopFlag) -> str | None:
    """Post the ping, and repeat it once if it fails and time is left. Return why it failed."""
    async with HttpClient() as client:
        reason = await _post(client, url, body, ends_at=ends_at)
        if reason is not None and not stop.is_set() and time.monotonic() + PAUSE_SECONDS <= ends_at:
            await asyncio.sleep(PAUSE_SECONDS)
            reason = await _post(client, url, body, ends_at=ends_at)
    return reason


async def _post(client: HttpClient, url: str, body: Mapping[str, Any], *, ends_at: float) -> str | None:
    """Return why one ping failed, without the text of an error, because it contains the host."""
    headers, seconds = {"User-Agent": f"certjob/{__version__}"}, max(ends_at - time.monotonic(), 0.05)
    try:
        answer = await client.request(
            "POST", url, headers=headers, json=body, max_body_bytes=0, deadline_seconds=seconds
        )
    except httpx.TimeoutException:
        return "its host did not answer in time"
    except httpx.HTTPError as error:
        return f"the call failed ({type(error).__name__})"
    return None if 200 <= answer.status_code < 300 else f"its host answered {answer.status_code}"
