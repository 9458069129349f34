"""HTTP calls with a deadline for the whole call, from the name lookup to the last byte of the answer.

The timeouts of httpx limit single operations: a server that sends a byte now and then could occupy a caller for hours.
"""

import asyncio
import os
import ssl
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Self

import httpx

IDLE_SECONDS = 2.0
"""Maximum age of an idle connection. Many servers close connections after 5 s, and a request must not meet a close."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """An answer with all headers, and its body up to the limit."""

    status_code: int
    headers: httpx.Headers
    body: bytes
    """The first ``max_body_bytes``, not decoded if the server sets a Content-Encoding without being asked."""


class HttpClient:
    """An HTTP/1.1 client with keep-alive for concurrent calls in one event loop.

    It uses no proxy from the environment, follows no redirects (they would send a key to another server), keeps no
    cookies, and verifies TLS certificates, with ``SSL_CERT_FILE`` or ``SSL_CERT_DIR`` if set.
    """

    def __init__(self) -> None:
        self._client = httpx.AsyncClient(
            timeout=None,  # noqa: S113 - each call has its deadline
            trust_env=False,
            verify=verifying_context(),
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
        """Make one call and return its answer with any status, within ``deadline_seconds``.

        A request is never sent twice. If the server has closed an idle connection, the client opens a new one; if a
        connection breaks after the request may have arrived, the call fails. Raises ``httpx.ConnectTimeout`` if the
        deadline passes before the request is sent, ``httpx.ReadTimeout`` if it passes later, other
        ``httpx.TransportError`` if the call fails, and ``httpx.InvalidURL``.
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
        body = b""
        try:
            async with asyncio.timeout(deadline_seconds):
                response = await self._client.send(request, stream=True)
                async with aclosing(response):  # closes the connection if the body was not read to its end
                    async for part in response.aiter_raw():
                        body += part
                        if len(body) > max_body_bytes:
                            break
        except TimeoutError as error:
            kind = httpx.ReadTimeout if is_sent else httpx.ConnectTimeout
            message = "the call exceeded its deadline"
            raise kind(message, request=request) from error
        except (httpx.ConnectError, ValueError) as error:  # ValueError: an invalid host name
            raise httpx.ConnectError(_words_of_the_system(error), request=request) from error
        return HttpAnswer(status_code=response.status_code, headers=response.headers, body=body[:max_body_bytes])

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _forget_location(response: httpx.Response) -> None:
    """Remove Location, because httpx parses it even if it does not follow redirects, and may fail on it."""
    response.headers.pop("Location", None)


@cache
def verifying_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _words_of_the_system(error: BaseException) -> str:
    """Return the innermost cause of a failed connection, because the outermost says only "all attempts failed"."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner.exceptions[0] if isinstance(inner, BaseExceptionGroup) else inner
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return str(error)
