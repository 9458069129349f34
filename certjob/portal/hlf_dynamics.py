"""The client of the portal's Edge Function: set who is visible, read who is, and what the outcome of a call means.

    outcome                                                                     raised
    200 with the contract's JSON and the values that were sent                  nothing
    200 of an older function, without `dates`                                   PortalStageError
    4xx with our error envelope and a code about this contact                   PermanentPortalError
    401, 403, 405, 413; any 3xx; code misconfigured; other 4xx without
      our envelope (a failed deploy answers 404 to everything)                  PortalStageError
    everything else: no connection, no answer in time, 408, 425, 429, 5xx,
      a 2xx that is not the contract, 4xx with a code we do not know            TransientPortalError

Three cases the contract does not foresee go the way that blocks nobody wrongly. A code about the contact under a 5xx
is transient: something between us and the function is broken. So is an unknown code of ours: a newer function knows a
reason that this client does not, so it is tried again and shown, but neither blocks the mentor nor stops the others.
And a code that is not written like ours (``ResourceNotFound``, ``0x80040217``) comes from a gateway: no envelope.

A transient push may have been done, or may be done later. It is repeated with an absolute value, and `certjob
reconcile` reads what the portal shows. A page of visible contacts has the same outcomes.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from http import HTTPStatus
from typing import Annotated, Final, Literal, Self, TypeVar
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from certjob import __version__
from certjob.errors import (
    Cause,
    ConfigurationError,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    TransientPortalError,
)
from certjob.outbox.http_client import HttpAnswer, HttpClient
from certjob.outbox.retry import RetryPolicy, parse_retry_after
from certjob.redaction import foreign_line

PERMANENT_CODES: Final = frozenset({"contact_not_found", "invalid_request", "dynamics_rejected"})
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
"""A page of 5,000 contacts is about 450 kB."""
MOST_PAGES: Final = 2000
"""Ten million contacts; a list that goes on after that has no end."""


class _Success(BaseModel):
    """An answer of the contract that is a success; one that has an error as well is none."""

    model_config = ConfigDict(strict=True)
    error: None = None
    dates: bool
    """Whether the portal has a column for the last visible day."""


class _Confirmed(_Success):
    contact_id: str
    visible: bool
    visible_until: date | None


class _Contact(BaseModel):
    contact_id: UUID
    visible_until: date | None


class _Page(_Success):
    contacts: list[_Contact]
    next: Annotated[str, Field(min_length=1, max_length=4096)] | None


class _Old(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _OldReady(_Old):
    ok: Literal[True]


class _OldConfirmed(_Old):
    contact_id: str
    visible: bool


class _OldPage(_Old):
    visible: list[UUID]
    next: str | None


class _Outdated(RootModel[_OldReady | _OldConfirmed | _OldPage]):
    """A success of a function that does not know the last visible day."""


class _Error(BaseModel):
    code: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")]
    message: str = ""


class _Envelope(BaseModel):
    """The contract's ``{"error": {"code", "message"}}``."""

    error: _Error


Form = TypeVar("Form", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisiblePage:
    """One page of the contacts that the portal shows."""

    visible_until: Mapping[UUID, date | None]
    """The last visible day of each contact; None if the column is empty or does not exist."""
    dates: bool
    """Whether the portal has a column for the day, and hides a contact after it."""


class HLFDynamicsSyncService:
    """Sets contacts visible or hidden on HLF's portal. Keeps connections: closed at the end, used in one event loop.

    It tries once; trying again, the order of calls and the consequences are the caller's.
    """

    def __init__(self, url: str, key: str, *, deadline_seconds: float = 30) -> None:
        """Raise ConfigurationError for a URL that HTTP cannot carry. The key has been checked with the settings."""
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            message = "CERTJOB_PORTAL_URL is not a valid URL"
            raise ConfigurationError(message) from error
        self._key = key
        self.deadline_seconds = deadline_seconds
        """The longest that one call takes, from the name lookup to the last byte of the answer."""
        self._client = HttpClient()

    async def update_portal_visibility(
        self, contact_id: UUID, *, visible: bool, visible_until: date | None, idempotency_key: str
    ) -> None:
        """Make the contact visible until a day, or hidden (None); return once the portal has confirmed it.

        Makes exactly one call.

        Raises PermanentPortalError, PortalStageError or TransientPortalError, as drawn at the top of the module; the
        function may have done it even so, if the answer was lost.
        """
        answer = await self._call(
            "POST",
            headers={"Idempotency-Key": idempotency_key},
            json={
                "contact_id": str(contact_id),
                "visible": visible,
                "visible_until": visible_until and visible_until.isoformat(),
            },
        )
        stored = _success(answer, _Confirmed)
        # A UUID's letters may be in either case (RFC 9562, 4).
        if stored is None or stored.contact_id.lower() != str(contact_id):
            raise self._error_for(answer)
        if stored.visible != visible or (stored.dates and stored.visible_until != visible_until):
            message = "the portal stored another value than the one that was sent"
            raise TransientPortalError(
                message,
                status=answer.status_code,
                correlation_id=self._correlation_id(answer),
            )

    async def read_visible_contacts(self, *, policy: RetryPolicy) -> AsyncIterator[VisiblePage]:
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

    async def read_first_page(self) -> VisiblePage:
        """Return the first contacts that the portal shows: whether the function can list at all."""
        page, _ = await self._read_page(None)
        return page

    async def _read_page(self, after: str | None) -> tuple[VisiblePage, str | None]:
        """Return a page, and the cursor of the next one."""
        query = {"visible": "true"} | ({} if after is None else {"after": after})
        answer = await self._call("GET", query=query, max_body_bytes=LONGEST_PAGE_BYTES)
        page = _success(answer, _Page)
        if page is None:
            raise self._error_for(answer)
        days = {contact.contact_id: contact.visible_until for contact in page.contacts}
        return VisiblePage(visible_until=days, dates=page.dates), page.next

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
        except httpx.TransportError as error:
            raise TransientPortalError(self._explain(error)) from error

    def _error_for(self, answer: HttpAnswer) -> PortalCallError:
        status, envelope = answer.status_code, _parse(answer, _Envelope)
        code = envelope.error.code if envelope else None
        kind, remark, next_step = _judge(status, code)
        said = self._printable(envelope.error.message) if envelope else ""
        what = f"{status} {code or _phrase(status)}".rstrip()
        asked = parse_retry_after(answer.headers.get("Retry-After"), now=datetime.now(UTC))
        return kind(
            f"the portal answered {what}{remark}" + (f" ({said})" if said else ""),
            next_step=next_step,
            code=Cause.CONTACT_NOT_FOUND if code == Cause.CONTACT_NOT_FOUND and kind is PermanentPortalError else None,
            status=status,
            retry_after_seconds=asked if issubclass(kind, TransientPortalError) else None,
            correlation_id=self._correlation_id(answer),
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

    def _correlation_id(self, answer: HttpAnswer) -> str | None:
        return self._printable(answer.headers.get("X-Correlation-Id", "")) or None

    def _printable(self, text: str) -> str:
        return foreign_line(text, secrets=[self._key], longest=LONGEST_TEXT)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _judge(status: int, code: str | None) -> tuple[type[PortalCallError], str, str | None]:
    """Return what an answer that is no success means: the error, a remark, and the next step.

    ``code`` is the envelope's, None without our envelope. The table at the top of the module says the same in words.
    """
    if status < 300:
        return TransientPortalError, ", but not what the contract says", None
    if status < 400:
        return PortalStageError, ", a redirect", "CERTJOB_PORTAL_URL must be the function's own address"
    if status in TRANSIENT_STATUSES:
        return TransientPortalError, "", None
    if status in STAGE_STATUSES:
        step = STAGE_STATUSES[status] + (GATEWAY_401 if status == 401 and code is None else "")
        return PortalStageError, "", step
    if code == "misconfigured":
        return PortalStageError, "", "check the function's secrets and its rights in Dynamics"
    if status < 500 and code is None:
        return PortalStageError, ", but not by the function", "check CERTJOB_PORTAL_URL and that it is deployed"
    if status < 500 and code in PERMANENT_CODES:
        return PermanentPortalError, "", None
    return TransientPortalError, "", None


def _success(answer: HttpAnswer, form: type[Form]) -> Form | None:
    """Return a 200 in this form, None for anything else. Raises PortalStageError for an older function."""
    if answer.status_code != 200:
        return None
    success = _parse(answer, form)
    if success is None and _parse(answer, _Outdated):
        message = "the portal's function is too old for this certjob"
        raise PortalStageError(message, next_step="deploy it again (docs/edge-function.md)")
    return success


def _parse(answer: HttpAnswer, form: type[Form]) -> Form | None:
    """Return the body in this form, None if it is anything else: what was too long, and is cut, is no JSON."""
    with suppress(ValidationError):
        return form.model_validate_json(answer.body)
    return None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
