"""Client of the portal's Edge Function: sets the visibility of a contact and reads the visible contacts.

    answer                                                                      error
    200 with the contract's JSON and the values that were sent                  none
    200 of an older function, without `dates`                                   PortalStageError
    4xx with our error envelope and a code about this contact                   PermanentPortalError
    401, 403, 405, 413; any 3xx; the code misconfigured; other 4xx without
      our envelope (a failed deploy answers 404 to every call)                  PortalStageError
    everything else: no connection, timeout, 408, 425, 429, 5xx, a 2xx that
      breaks the contract, 4xx with an unknown code                             TransientPortalError

The contract does not cover three cases. Each is handled in the way that never blocks a mentor by mistake:

* A code about the contact with a 5xx is transient, because something between certjob and the function is broken.
* An unknown code in our format is transient, because a newer function may know more reasons than this client.
* A code in another format (``ResourceNotFound``, ``0x80040217``) comes from a gateway, so it is not our envelope.

A push that failed may have been made, or may be made later. It is repeated with an absolute value, and `certjob
reconcile` reads what the portal shows. Reading the visible contacts raises the same errors.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from functools import cached_property
from typing import Annotated, Final, Literal, Self, TypeVar
from uuid import UUID

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

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
"""4xx statuses that are retried regardless of the body."""
STAGE_STATUSES: Final = {
    401: "check CERTJOB_PORTAL_KEY",
    403: "check CERTJOB_PORTAL_KEY and any gateway in front of the function",
    405: "check that CERTJOB_PORTAL_URL is the function's address",
    413: "check that CERTJOB_PORTAL_URL is the function's address",
}
"""4xx statuses that every call would get, with the next step."""

GATEWAY_401: Final = ", and that the function is deployed with verify_jwt = false (a gateway sent this answer)"
"""Supabase's gateway requires a JWT if supabase/config.toml was missing at deployment; the key may be correct."""

LONGEST_TEXT: Final = 200
"""Maximum characters that an error quotes from another system."""
LONGEST_PAGE_BYTES: Final = 1_000_000
"""A page of 5,000 contacts is about 450 kB."""
MOST_PAGES: Final = 2000
"""Enough for ten million contacts; a longer list is treated as endless."""


SecretUntil = date | Literal["unusable"] | None
"""The last day of the function's client secret, if the function knows it. ``unusable``: its setting is not a day."""


class _Success(BaseModel):
    """Base of the successful answers. An answer that also has an ``error`` is not a success."""

    model_config = ConfigDict(strict=True)
    error: None = None
    dates: bool
    """Whether the portal has a column for the last visible day, and hides a contact after it."""


class _Confirmed(_Success):
    contact_id: str
    visible: bool
    visible_until: date | None


class _Contact(BaseModel):
    contact_id: UUID
    visible_until: date | None


class VisiblePage(_Success):
    """One page of the visible contacts."""

    contacts: list[_Contact]
    next: Annotated[str, Field(min_length=1, max_length=4096)] | None
    """The cursor of the next page."""
    secret_until: SecretUntil = None

    @cached_property
    def visible_until(self) -> Mapping[UUID, date | None]:
        """The last visible day of each contact; None if the column is empty or does not exist."""
        return {contact.contact_id: contact.visible_until for contact in self.contacts}


class _Outdated(BaseModel):
    """A success of a function that does not know the last visible day."""

    model_config = ConfigDict(strict=True, extra="forbid")
    ok: Literal[True] | None = None
    contact_id: str = ""
    visible: bool | list[UUID] | None = None
    next: str | None = None


class _Error(BaseModel):
    code: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")]
    message: str = ""


class _Envelope(BaseModel):
    """The contract's ``{"error": {"code", "message"}}``."""

    error: _Error


Form = TypeVar("Form", bound=BaseModel)


class HLFDynamicsSyncService:
    """Shows or hides contacts on HLF's portal, one call at a time; retries and the order of calls are up to the caller.

    Connections are kept open until ``close``, and belong to one event loop.
    """

    def __init__(self, url: str, key: str, *, deadline_seconds: float = 30) -> None:
        """Raise ConfigurationError if the URL is not valid. The settings have already checked the key."""
        try:
            self._url = httpx.URL(url)
        except httpx.InvalidURL as error:
            message = "CERTJOB_PORTAL_URL is not a valid URL"
            raise ConfigurationError(message) from error
        self._key = key
        self._headers = {"Authorization": f"Bearer {key}", "User-Agent": f"certjob/{__version__}"}
        self.deadline_seconds = deadline_seconds
        """Maximum duration of one call, from the name lookup to the last byte of the answer."""
        self._client = HttpClient()

    async def update_portal_visibility(
        self, contact_id: UUID, *, visible: bool, visible_until: date | None, idempotency_key: str
    ) -> bool:
        """Show the contact until a day, or hide it (None), with exactly one call; return when the portal confirms.

        Returns whether the portal has a column for the day, and hides the contact after it.

        Raises PermanentPortalError, PortalStageError or TransientPortalError (see the table at the top of the module).
        The change may have been made despite an error, because the answer can be lost.
        """
        body = {
            "contact_id": str(contact_id),
            "visible": visible,
            "visible_until": visible_until and visible_until.isoformat(),
        }
        headers = self._headers | {"Idempotency-Key": idempotency_key}
        with self._translated():
            answer = await self._client.request(
                "POST", self._url, headers=headers, json=body, deadline_seconds=self.deadline_seconds
            )
        stored = _success(answer, _Confirmed)
        # RFC 9562, section 4, allows upper and lower case in UUIDs.
        if stored is None or stored.contact_id.lower() != str(contact_id):
            raise self._error_for(answer)
        if stored.visible != visible or (stored.dates and stored.visible_until != visible_until):
            message = "the portal stored another value than the one that was sent"
            raise TransientPortalError(message, status=answer.status_code, correlation_id=self._correlation_id(answer))
        return stored.dates

    async def read_visible_contacts(self, *, policy: RetryPolicy) -> AsyncIterator[VisiblePage]:
        """Yield the visible contacts page by page; the list is complete when the generator ends without an error.

        Each page has its own deadline and is retried according to ``policy``. Raises the same errors as
        ``update_portal_visibility``. A contact that changes during the read may or may not be in the list.
        """
        cursors: set[str] = set()
        cursor: str | None = None
        while True:
            page = await policy.call(self.read_page, cursor)
            yield page
            cursor = page.next
            if cursor is None:
                return
            if cursor in cursors or len(cursors) == MOST_PAGES:
                message = "the portal's list of contacts does not end, so certjob cannot compare it"
                raise PortalStageError(message)
            cursors.add(cursor)

    async def read_page(self, after: str | None = None) -> VisiblePage:
        """Return the page with this cursor, or the first one. Raises the same errors."""
        query = {"visible": "true"} | ({} if after is None else {"after": after})
        with self._translated():
            answer = await self._client.request(
                "GET",
                self._url.copy_merge_params(query),
                headers=self._headers,
                deadline_seconds=self.deadline_seconds,
                max_body_bytes=LONGEST_PAGE_BYTES,
            )
        page = _success(answer, VisiblePage)
        if page is None:
            raise self._error_for(answer)
        return page

    def _error_for(self, answer: HttpAnswer) -> PortalCallError:
        status, envelope = answer.status_code, _parse(answer, _Envelope)
        code = envelope.error.code if envelope else None
        kind, remark, next_step = _judge(status, code)
        said = self._printable(envelope.error.message) if envelope else ""
        what = f"{status} {code or httpx.codes.get_reason_phrase(status)}".rstrip()
        asked = parse_retry_after(answer.headers.get("Retry-After"), now=datetime.now(UTC))
        return kind(
            f"the portal answered {what}{remark}" + (f" ({said})" if said else ""),
            next_step=next_step,
            code=Cause.CONTACT_NOT_FOUND if code == Cause.CONTACT_NOT_FOUND and kind is PermanentPortalError else None,
            status=status,
            retry_after_seconds=asked if issubclass(kind, TransientPortalError) else None,
            correlation_id=self._correlation_id(answer),
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn a failed call into our error."""
        try:
            yield
        except httpx.TransportError as error:
            raise TransientPortalError(self._explain(error)) from error

    def _explain(self, error: httpx.TransportError) -> str:
        if isinstance(error, httpx.ConnectTimeout):
            return f"no connection to the portal within {self.deadline_seconds:g} s"
        if isinstance(error, httpx.TimeoutException):
            return f"no complete answer from the portal within {self.deadline_seconds:g} s"
        if isinstance(error, httpx.ProtocolError):  # its text quotes the received bytes
            return "the portal closed the connection before its answer was complete, or it does not speak HTTP"
        what = (
            "no connection to the portal" if isinstance(error, httpx.ConnectError) else "connection to the portal lost"
        )
        said = self._printable(str(error))  # empty if the connection was reset
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
    """Classify an unsuccessful answer: return the error class, a remark and the next step.

    ``code`` comes from our envelope, or is None without one. The table at the top of the module has the same rules.
    """
    if status < 300:
        return TransientPortalError, ", which breaks the contract", None
    if status < 400:
        return PortalStageError, ", a redirect", "CERTJOB_PORTAL_URL must be the function's own address"
    if status in TRANSIENT_STATUSES:
        return TransientPortalError, "", None
    if status in STAGE_STATUSES:
        step = STAGE_STATUSES[status] + (GATEWAY_401 if status == 401 and code is None else "")
        return PortalStageError, "", step
    if code == "misconfigured":
        return PortalStageError, "", "check the function's secrets and its permissions in Dynamics"
    if status < 500 and code is None:
        step = "check CERTJOB_PORTAL_URL and that the function is deployed"
        return PortalStageError, ", but the answer is not from the function", step
    if status < 500 and code in PERMANENT_CODES:
        return PermanentPortalError, "", None
    return TransientPortalError, "", None


def _success(answer: HttpAnswer, form: type[Form]) -> Form | None:
    """Return a 200 as ``form``, or None if it does not fit. Raises PortalStageError for an older function."""
    if answer.status_code != 200:
        return None
    success = _parse(answer, form)
    if success is None and (outdated := _parse(answer, _Outdated)) and outdated.model_fields_set:
        message = "the portal's function is too old for this certjob"
        raise PortalStageError(message, next_step="deploy it again (docs/edge-function.md)")
    return success


def _parse(answer: HttpAnswer, form: type[Form]) -> Form | None:
    """Return the body as ``form``, or None if it does not fit. A body cut off at the limit is not valid JSON."""
    with suppress(ValidationError):
        return form.model_validate_json(answer.body)
    return None
