"""HTTP calls that are over by a deadline, whatever the server does.

httpx limits each operation, so a server that sends one byte now and then can hold a caller for hours. Here the deadline
is for the whole call, from the name lookup to the last byte of the answer.
"""

import asyncio
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Self

import httpx

IDLE_SECONDS = 2.0
"""A connection unused for longer is not used again: shorter than the 5 s after which many servers close it, so that a
request seldom meets a connection that is just being closed."""

SURELY_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
"""After any other ``httpx.TransportError`` the server may have got the request, and may still act on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """An answer whose headers arrived whole, and its body up to the limit."""

    status_code: int
    headers: httpx.Headers
    body: bytes
    """Its first ``max_body_bytes``; still coded if the server chose a Content-Encoding that was not asked for."""


class HttpClient:
    """An HTTP/1.1 client that keeps connections alive; for any number of calls at once, in one event loop.

    It takes no proxy from the environment, follows no redirect (which would carry a key elsewhere), keeps no cookie and
    verifies TLS certificates, by ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` where these are set.
    """

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(
            timeout=None,  # noqa: S113 - each call has its deadline
            trust_env=False,
            verify=_verifying_context(),
            limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            event_hooks={"response": [_forget_location]},
        )

    async def request(
        self,
        method: str,
        url: httpx.URL | str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
        deadline_seconds: float = 30,
        max_body_bytes: int = 64 * 1024,
    ) -> HttpAnswer:
        """Make one call and return its answer, whatever its status, within ``deadline_seconds``.

        A connection that the server closed while it was idle is replaced unnoticed. A request is never sent twice: once
        it may have arrived, a broken connection is an error. Raises ``httpx.ConnectTimeout`` when the time is over
        before anything was sent, ``httpx.ReadTimeout`` after that, another ``httpx.TransportError`` when the call
        fails, and ``httpx.InvalidURL``.
        """
        is_sent = False

        async def trace(event: str, _info: Mapping[str, Any]) -> None:
            nonlocal is_sent
            is_sent = is_sent or event.endswith("send_request_headers.started")

        request = self._client.build_request(
            method,
            url,
            headers={"Accept-Encoding": "identity", **(headers or {})},
            json=json,
            extensions={"trace": trace},
        )
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._send(request, max_body_bytes=max_body_bytes)
        except TimeoutError as error:
            kind = httpx.ReadTimeout if is_sent else httpx.ConnectTimeout
            message = "the time for the call is over"
            raise kind(message, request=request) from error
        except (httpx.ConnectError, ValueError) as error:  # ValueError: a host name that cannot be one
            raise httpx.ConnectError(_words_of_the_system(error), request=request) from error

    async def _send(self, request: httpx.Request, *, max_body_bytes: int) -> HttpAnswer:
        response = await self._client.send(request, stream=True)
        body = b""
        try:
            async for part in response.aiter_raw():
                body += part
                if len(body) > max_body_bytes:
                    break
        finally:
            await response.aclose()  # if a rest is unread, the connection is closed
        return HttpAnswer(status_code=response.status_code, headers=response.headers, body=body[:max_body_bytes])

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _forget_location(response: httpx.Response) -> None:
    """Keep httpx from reading where a redirect goes, which it does even if it does not follow it, and may crash on."""
    response.headers.pop("Location", None)


@cache
def _verifying_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _words_of_the_system(error: BaseException) -> str:
    """Return why a connection was not made; on its way through the libraries that becomes "all attempts failed"."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error)
