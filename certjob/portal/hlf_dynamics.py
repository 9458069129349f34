"""The client of the portal's Edge Function: set who is visible, read who is, and what the outcome of a call means.

    outcome                                                                     raised
    200 with the contract's JSON, both values echoed                            nothing
    4xx with our error envelope and a code about this contact                   PermanentPortalError
    401, 403, 405, 413; any 3xx; code misconfigured; other 4xx without
      our envelope (a failed deploy answers 404 to everything)                  PortalStageError
    everything else: no connection, no answer in time, 408, 425, 429, 5xx,
      a 2xx that is not the contract, 4xx with a code we do not know            TransientPortalError
    of these, no answer to a request that was sent, a 2xx, and a 5xx without
      a code that says that nothing was done: the portal may have made the
      change, or may make it later                                              … with outcome_unknown

Three cases the contract does not foresee go the way that blocks nobody wrongly. A code about the contact under a 5xx
is transient: something between us and the function is broken. So is an unknown code of ours: a newer function knows a
reason that this client does not, so it is tried again and shown, but neither blocks the mentor nor stops the others.
And a code that is not written like ours (``ResourceNotFound``, ``0x80040217``) comes from a gateway: no envelope.

A page of what is visible has the same outcomes, and nothing of it is unknown: reading changes nothing.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import httpx

from certjob import __version__
from certjob.errors import (
    ConfigurationError,
    FailureCode,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    TransientPortalError,
)
from certjob.outbox.http_client import SURELY_NOT_SENT, HttpAnswer, HttpClient
from certjob.outbox.retry import RetryPolicy, parse_retry_after
from certjob.redaction import foreign_line

PERMANENT_CODES: Final = frozenset({"contact_not_found", "invalid_request", "dynamics_rejected"})
STAGE_CODES: Final = frozenset({"misconfigured"})
NOT_DONE_CODES: Final = frozenset({"dynamics_unavailable", "token_unavailable"})
"""After any other 5xx nobody knows: a gateway says so of a function that was ended in the middle of a change."""
TRANSIENT_STATUSES: Final = frozenset({408, 425, 429})
"""The 4xx that ask for another try, whatever the body says."""

STAGE_STATUSES: Final = {
    401: "check CERTJOB_PORTAL_KEY",
    403: "check CERTJOB_PORTAL_KEY and what stands before the function",
    405: "check that CERTJOB_PORTAL_URL is the function's address",
    413: "check that CERTJOB_PORTAL_URL is the function's address",
}
"""The 4xx that every call would get, with the next step."""

GATEWAY_401: Final = ", and that the function is deployed with verify_jwt = false: this is not its own answer"
"""Supabase's gateway asks for a JWT where supabase/config.toml was not in place; the key may be right."""

LONGEST_TEXT: Final = 200
"""Characters of somebody else's text that an error carries."""

LONGEST_PAGE_BYTES: Final = 1_000_000
"""A page of 5,000 contacts is about 200 kB."""
LONGEST_CURSOR: Final = 4096
MOST_PAGES: Final = 2000
"""Ten million contacts; a list that goes on after that has no end."""

_KEY = re.compile(r"[\x21-\x7e]+")
_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Envelope:
    """The contract's ``{"error": {"code", "message"}}``."""

    code: str
    message: str


class HLFDynamicsSyncService:
    """Sets contacts visible or hidden on HLF's portal. Keeps connections: closed at the end, used in one event loop.

    It tries once; trying again, the order of calls and the consequences are the caller's.
    """

    def __init__(self, url: str, key: str, *, deadline_seconds: float = 30) -> None:
        """Raise ConfigurationError for a URL or a key that HTTP cannot carry."""
        if not _KEY.fullmatch(key):
            message = "CERTJOB_PORTAL_KEY holds a space, a line break or a letter that no key has"
            raise ConfigurationError(message, next_step="paste it again")
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            message = "CERTJOB_PORTAL_URL is not a valid URL"
            raise ConfigurationError(message) from error
        self._key = key
        self.deadline_seconds = deadline_seconds
        """The longest that one call takes, from the name lookup to the last byte of the answer."""
        self._client = HttpClient()

    async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
        """Make the contact visible or hidden; return once the portal has confirmed it. Makes exactly one call.

        Raises PermanentPortalError, PortalStageError or TransientPortalError, as drawn at the top of the module; the
        function may have done it even so, if the answer was lost.
        """
        answer = await self._call(
            "POST",
            headers={"Idempotency-Key": idempotency_key},
            json={"contact_id": str(contact_id), "visible": visible},
        )
        content = _parse(answer)
        if answer.status_code != 200 or not _is_confirmed(content, contact_id=contact_id, visible=visible):
            raise self._error_for(answer, envelope=_envelope(content))

    async def read_visible_contacts(self, *, policy: RetryPolicy) -> AsyncIterator[list[UUID]]:
        """Yield the contacts that the portal shows, a page at a time; after the last page these are all.

        Each page has its own deadline and the policy's tries. Raises as ``update_portal_visibility`` does; then what
        was yielded is only a part. A contact that changes while the list is read may be in it or not.
        """
        cursors: set[str] = set()
        cursor: str | None = None
        while True:
            page, cursor = await policy.call(lambda after=cursor: self._read_page(after))  # type: ignore[misc]
            yield page
            if cursor is None:
                return
            if cursor in cursors or len(cursors) == MOST_PAGES:
                message = "the portal's list of contacts does not end, so nothing can be compared with it"
                raise PortalStageError(message)
            cursors.add(cursor)

    async def read_first_page(self) -> list[UUID]:
        """Return the first contacts that the portal shows: whether the function can list at all."""
        return (await self._read_page(None))[0]

    async def _read_page(self, after: str | None) -> tuple[list[UUID], str | None]:
        query = {"visible": "true"} | ({} if after is None else {"after": after})
        answer = await self._call("GET", query=query, max_body_bytes=LONGEST_PAGE_BYTES)
        content = _parse(answer)
        if answer.status_code == 200 and content == {"ok": True}:  # it knows no query
            message = "the portal's function is too old to list contacts"
            raise PortalStageError(message, next_step="deploy it again (docs/edge-function.md)")
        page = _page(content) if answer.status_code == 200 else None
        if page is None:
            raise self._error_for(answer, envelope=_envelope(content))
        return page

    async def _call(
        self,
        method: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        json: object = None,
        max_body_bytes: int = 64 * 1024,
    ) -> HttpAnswer:
        try:
            return await self._client.request(
                method,
                self._url.copy_merge_params(query) if query else self._url,
                headers={
                    "Authorization": f"Bearer {self._key}",
                    "User-Agent": f"certjob/{__version__}",
                    **(headers or {}),
                },
                json=json,
                deadline_seconds=self.deadline_seconds,
                max_body_bytes=max_body_bytes,
            )
        except SURELY_NOT_SENT as error:
            raise TransientPortalError(self._explain(error)) from error
        except httpx.TransportError as error:
            raise TransientPortalError(self._explain(error), code=FailureCode.OUTCOME_UNKNOWN) from error

    def _error_for(self, answer: HttpAnswer, *, envelope: _Envelope | None) -> PortalCallError:
        kind, remark, next_step = _judge(answer.status_code, code=envelope.code if envelope else None)
        said = self._printable(envelope.message) if envelope else ""
        what = f"{answer.status_code} {envelope.code if envelope else _phrase(answer.status_code)}".rstrip()
        retry_after_seconds = None
        if kind is TransientPortalError:
            retry_after_seconds = parse_retry_after(answer.headers.get("Retry-After"), now=_time_of(answer))
        return kind(
            f"the portal answered {what}{remark}" + (f" ({said})" if said else ""),
            next_step=next_step,
            code=_failure_code(kind, answer.status_code, code=envelope.code if envelope else None),
            status=answer.status_code,
            retry_after_seconds=retry_after_seconds,
            correlation_id=self._printable_ascii(answer.headers.get("X-Correlation-Id")),
        )

    def _explain(self, error: httpx.TransportError) -> str:
        if isinstance(error, httpx.ConnectTimeout):
            return f"no connection to the portal within {self.deadline_seconds:g} s"
        if isinstance(error, httpx.TimeoutException):
            return f"no whole answer from the portal within {self.deadline_seconds:g} s"
        if isinstance(error, httpx.ProtocolError):  # its text quotes what came over the wire
            return "the portal closed the connection before its answer was whole, or it does not speak HTTP"
        what = (
            "no connection to the portal" if isinstance(error, httpx.ConnectError) else "connection to the portal lost"
        )
        said = self._printable(str(error))  # nothing, where the connection was reset
        return f"{what}: {said}" if said else what

    def _printable(self, text: str) -> str:
        return foreign_line(text, secrets=[self._key], longest=LONGEST_TEXT)

    def _printable_ascii(self, text: str | None) -> str | None:
        characters = "".join(character for character in text or "" if " " <= character <= "~").strip()
        return characters.replace(self._key, "<secret>")[:LONGEST_TEXT] or None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _judge(status: int, *, code: str | None) -> tuple[type[PortalCallError], str, str | None]:
    """Return what an answer that is no success means, how the sentence about it goes on, and the next step.

    ``code`` is the envelope's, None without our envelope. The table at the top of the module says the same in words.
    """
    if status < 300:
        return TransientPortalError, ", but not what the contract says", None
    if status < 400:
        return PortalStageError, ", a redirect", "CERTJOB_PORTAL_URL must be the function's own address"
    if status in TRANSIENT_STATUSES:
        return TransientPortalError, "", None
    if status in STAGE_STATUSES:
        by_gateway = status == 401 and code is None
        return PortalStageError, "", STAGE_STATUSES[status] + (GATEWAY_401 if by_gateway else "")
    if code in STAGE_CODES:
        return PortalStageError, "", "check the function's secrets and its rights in Dynamics"
    if status < 500 and code is None:
        return PortalStageError, ", but not by the function", "check CERTJOB_PORTAL_URL and that it is deployed"
    if status < 500 and code in PERMANENT_CODES:
        return PermanentPortalError, "", None
    return TransientPortalError, "", None


def _failure_code(kind: type[PortalCallError], status: int, *, code: str | None) -> FailureCode | None:
    """Return the code that is stored for such an answer; None: the usual one of the error's class."""
    if kind is PermanentPortalError:
        return FailureCode.parse(code)
    if kind is PortalStageError:
        return FailureCode.PORTAL_KEY_REFUSED if status in {401, 403} else None
    if status < 300 or (status >= 500 and code not in NOT_DONE_CODES):
        return FailureCode.OUTCOME_UNKNOWN
    return FailureCode.PORTAL_THROTTLED if status == 429 else FailureCode.PORTAL_FAILED


def _time_of(answer: HttpAnswer) -> datetime:
    """Return when the answer was made by the server's own clock, which a date in it is to be read by; else by ours."""
    try:
        made_at = parsedate_to_datetime(answer.headers.get("Date") or "")
    except (ValueError, TypeError, IndexError, OverflowError):
        return datetime.now(UTC)
    return made_at if made_at.tzinfo is not None else made_at.replace(tzinfo=UTC)


def _parse(answer: HttpAnswer) -> dict[str, Any] | None:
    """Return the body's JSON object, None if it is anything else."""
    if answer.body_is_cut:
        return None
    try:
        content = json.loads(answer.body, object_pairs_hook=_unambiguous)
    except (ValueError, RecursionError):  # RecursionError: thousands of brackets
        return None
    return content if isinstance(content, dict) else None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, raise ValueError where a name stands twice: ``visible`` may not be both."""
    content = dict(pairs)
    if len(content) < len(pairs):
        message = "a name stands twice"
        raise ValueError(message)
    return content


def _is_confirmed(content: dict[str, Any] | None, *, contact_id: UUID, visible: bool) -> bool:
    """Whether both values came back and no error; a UUID's letters may be in either case (RFC 9562, 4)."""
    if content is None or "error" in content:
        return False
    echoed = content.get("contact_id")
    return isinstance(echoed, str) and echoed.lower() == str(contact_id) and content.get("visible") is visible


def _page(content: dict[str, Any] | None) -> tuple[list[UUID], str | None] | None:
    """Return the contacts of a page and the cursor of the next one; None if it is not what the contract says."""
    if content is None or "error" in content or "next" not in content:
        return None
    visible, cursor = content.get("visible"), content["next"]
    if not isinstance(visible, list) or not (cursor is None or isinstance(cursor, str)):
        return None
    if cursor is not None and not 0 < len(cursor) <= LONGEST_CURSOR:
        return None
    if not all(isinstance(each, str) and _UUID.fullmatch(each) for each in visible):
        return None
    return [UUID(each) for each in visible], cursor


def _envelope(content: dict[str, Any] | None) -> _Envelope | None:
    error = content.get("error") if content else None
    if not isinstance(error, dict):
        return None
    code, message = error.get("code"), error.get("message")
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        return None
    return _Envelope(code=code, message=message if isinstance(message, str) else "")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
