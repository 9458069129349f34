"""Entra and Dataverse as one real HTTP server on loopback, for the Edge Function to call; it misbehaves as told.

    with FakeDynamics() as dynamics:
        dynamics.contacts = {contact_id: True}
        dynamics.faults.append(refusal(429, "0x80072322", retry_after="1"))
        ...                                     # the function pushes
        assert dynamics.contacts == {contact_id: False}

Each PATCH, and each page of the contacts, takes the next fault of the list; when there is none left, ``outage``;
without one Dataverse works. Pages are in the order of the ids, with a cookie of their last one, as Dataverse's are.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote
from uuid import UUID

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

TENANT = "planted-tenant"
CLIENT_ID = "planted-client-id"
FIELD = "hlf_visibleonportal"
PERSON = "Kari Nordmann"
"""Whom Dataverse's error texts name; a person does not belong into answers or logs."""
CONTACTS = "/api/data/v9.2/contacts"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes over the wire."""

    status: int
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, code: str, *, said: str = f"contact of {PERSON}", retry_after: str | None = None) -> Answer:
    """An error in Dataverse's own form."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Answer(status, {"error": {"code": code, "message": said}}, headers)


def no_token(status: int, error: str, number: int, *, retry_after: str | None = None) -> Answer:
    """An error in Entra's own form."""
    content = {"error": error, "error_description": f"AADSTS{number}: {PERSON}", "error_codes": [number]}
    return Answer(status, content, {"Retry-After": retry_after} if retry_after else {})


UNKNOWN_COLUMN = refusal(
    400, "0x0", said="Could not find a property named 'x' on type 'Microsoft.Dynamics.CRM.contact'."
)
"""A column that the table does not have. Source: Microsoft, "Troubleshoot Dataverse Web API client errors"."""


class FakeDynamics:
    """Both services; a context manager. Its attributes may be read and set at any time."""

    client_secret = "planted~client~secret"
    """What Entra takes for the application's secret."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        """Those that are good; clear it, and all that were handed out have expired."""
        self._server = HTTPServer(host="127.0.0.1")
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was done and told; the tokens stay good."""
        self.contacts: dict[UUID, bool | None] = {}
        """What the portal shows; None is a column that nobody has filled in."""
        self.page_size = 5000
        self.faults: list[Answer] = []
        self.outage: Answer | None = None
        self.entra_outage: Answer | None = None
        self.token_requests = 0
        self.pages_read = 0
        self.patches: list[tuple[UUID, bool]] = []
        """Every change that Dataverse was asked for, refused or not, in order."""

    @property
    def url(self) -> str:
        """Where both listen: the paths tell them apart."""
        return f"http://127.0.0.1:{self._server.port}"

    def give_token(self, form: dict[str, list[str]]) -> Answer:
        """Answer the application that asks for a token."""
        self.token_requests += 1
        if self.entra_outage is not None:
            return self.entra_outage
        if form.get("client_secret") != [self.client_secret]:
            return no_token(401, "invalid_client", 7000215)
        asked = {"client_id": [CLIENT_ID], "grant_type": ["client_credentials"], "scope": [f"{self.url}/.default"]}
        if any(form.get(name) != value for name, value in asked.items()):
            return no_token(400, "invalid_request", 900144)
        token = f"planted-token-{len(self.tokens)}-{self.token_requests}"
        self.tokens.add(token)
        return Answer(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def patch(self, contact_id: UUID, content: Any, *, has_token: bool, may_create: bool) -> Answer:
        """Answer a change of one contact."""
        self.patches.append((contact_id, next(iter(content.values()))))
        if not has_token:
            return Answer(401)
        if set(content) != {FIELD}:
            return UNKNOWN_COLUMN
        fault = self.faults.pop(0) if self.faults and contact_id in self.contacts else self.outage
        if fault is not None:
            return fault
        if contact_id not in self.contacts and not may_create:
            return refusal(404, "0x80040217")
        self.contacts[contact_id] = content[FIELD]
        return Answer(204)

    def list_contacts(self, query: dict[str, list[str]], *, has_token: bool) -> Answer:
        """Answer a page of the active contacts that are visible."""
        self.pages_read += 1
        if not has_token:
            return Answer(401)
        if query.get("$filter") != [f"{FIELD} eq true and statecode eq 0"]:
            return UNKNOWN_COLUMN
        fault = self.faults.pop(0) if self.faults else self.outage
        if fault is not None:
            return fault
        cookie = re.search(r"contactid last=%22%7b(.{36})%7d", query.get("$skiptoken", [""])[0])
        last = cookie[1].lower() if cookie else ""
        ids = sorted(str(each) for each, visible in self.contacts.items() if visible and str(each) > last)
        content: dict[str, Any] = {"value": [{"@odata.etag": 'W/"1"', "contactid": each} for each in ids]}
        if len(ids) > self.page_size:
            content["value"] = content["value"][: self.page_size]
            inner = f"%3ccookie page=%221%22%3e%3ccontactid last=%22%7b{ids[self.page_size - 1].upper()}%7d%22 /%3e"
            token = quote(f'<cookie pagenumber="2" pagingcookie="{inner}" istracking="False" />')
            content["@odata.nextLink"] = f"{self.url}{CONTACTS}?$select=contactid&$skiptoken={token}"
        return Answer(200, content)

    def answer(self, request: Request) -> Response:
        """One request after the other: the server has one thread."""
        query, answer = request.args.to_dict(flat=False), Answer(404)
        has_token = request.headers.get("Authorization", "").removeprefix("Bearer ") in self.tokens
        if request.path == f"/{TENANT}/oauth2/v2.0/token":
            answer = self.give_token(request.form.to_dict(flat=False))
        elif request.method == "GET" and request.path == CONTACTS:
            answer = self.list_contacts(query, has_token=has_token)
        elif request.method == "PATCH" and (found := re.fullmatch(rf"{CONTACTS}\(([0-9a-f-]{{36}})\)", request.path)):
            may_create = request.headers.get("If-Match") != "*"
            answer = self.patch(UUID(found[1]), request.json, has_token=has_token, may_create=may_create)
        content = "" if answer.content is None else json.dumps(answer.content)
        return Response(content, answer.status, answer.headers, content_type="application/json")

    def __enter__(self) -> Self:
        self._server.start()
        self._server.expect_request(re.compile("/")).respond_with_handler(self.answer)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
