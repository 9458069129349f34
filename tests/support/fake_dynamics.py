"""Entra and Dataverse as one real HTTP server on loopback, for the Edge Function to call; it misbehaves as told.

    with FakeDynamics() as dynamics:
        dynamics.contacts = {contact_id: True}
        dynamics.faults.append(refusal(429, "0x80072322", retry_after="1"))
        ...                                     # the function pushes
        assert dynamics.contacts == {contact_id: False}

Each PATCH of a contact that is there takes the next fault of the list; when there is none left, Dataverse works.
Pages are in the order of the ids, with a cookie of their last one, as Dataverse's are.
"""

import json
import re
from typing import Any, NamedTuple, Self
from urllib.parse import quote
from uuid import UUID

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

TENANT = "planted-tenant"
CLIENT_ID = "planted-client-id"
CLIENT_SECRET = "planted~client~secret"
FIELD = "hlf_visibleonportal"
PERSON = "Kari Nordmann"
"""Whom Dataverse's error texts name; a person does not belong into answers or logs."""
CONTACTS = "/api/data/v9.2/contacts"


class Answer(NamedTuple):
    """What goes over the wire."""

    status: int
    content: Any = None
    headers: dict[str, str] | None = None


def refusal(status: int, code: str, *, said: str = f"contact of {PERSON}", retry_after: str | None = None) -> Answer:
    """An error in Dataverse's own form."""
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Answer(status, {"error": {"code": code, "message": said}}, headers)


def no_token(status: int, error: str, number: int) -> Answer:
    """An error in Entra's own form."""
    return Answer(status, {"error": error, "error_description": f"AADSTS{number}: {PERSON}", "error_codes": [number]})


UNKNOWN_COLUMN = refusal(
    400, "0x0", said="Could not find a property named 'x' on type 'Microsoft.Dynamics.CRM.contact'."
)
"""A column that the table does not have. Source: Microsoft, "Troubleshoot Dataverse Web API client errors"."""


class FakeDynamics:
    """Both services; a context manager. Its attributes may be read and set at any time."""

    secrets = (CLIENT_SECRET, CLIENT_ID, "planted-token")
    """What belongs into no text."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        """Those that are good; clear it, and all that were handed out have expired."""
        self._server = HTTPServer(host="127.0.0.1")
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget what was done and told; the tokens stay good."""
        self.contacts: dict[UUID, bool] = {}
        """What the portal shows."""
        self.page_size = 5000
        self.faults: list[Answer] = []
        self.token_requests = 0
        self.pages_read = 0
        self.patches: list[UUID] = []
        """Every change that Dataverse was asked for, refused or not, in order."""

    @property
    def url(self) -> str:
        """Where both listen: the paths tell them apart."""
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def settings(self) -> dict[str, str]:
        """What leads the function here."""
        entra = {"AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_ID": CLIENT_ID, "AZURE_CLIENT_SECRET": CLIENT_SECRET}
        return entra | {"AZURE_AUTHORITY": self.url, "DYNAMICS_URL": self.url, "DYNAMICS_VISIBILITY_FIELD": FIELD}

    def give_token(self, form: dict[str, str]) -> Answer:
        """Answer the application that asks for a token."""
        self.token_requests += 1
        if form.get("client_secret") != CLIENT_SECRET:
            return no_token(401, "invalid_client", 7000215)
        asked = {"client_id": CLIENT_ID, "grant_type": "client_credentials", "scope": f"{self.url}/.default"}
        if not asked.items() <= form.items():
            return no_token(400, "invalid_request", 900144)
        token = f"planted-token-{len(self.tokens)}-{self.token_requests}"
        self.tokens.add(token)
        return Answer(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def patch(self, contact_id: UUID, content: dict[str, bool], *, may_create: bool) -> Answer:
        """Answer a change of one contact."""
        if set(content) != {FIELD}:
            return UNKNOWN_COLUMN
        if contact_id not in self.contacts and not may_create:
            return refusal(404, "0x80040217")
        if self.faults:
            return self.faults.pop(0)
        self.contacts[contact_id] = content[FIELD]
        return Answer(204)

    def list_contacts(self, query: dict[str, str]) -> Answer:
        """Answer a page of the active contacts that are visible."""
        self.pages_read += 1
        if query.get("$filter") != f"{FIELD} eq true and statecode eq 0":
            return UNKNOWN_COLUMN
        cookie = re.search(r"contactid last=%22%7b(.{36})%7d", query.get("$skiptoken", ""))
        last = cookie[1].lower() if cookie else ""
        ids = sorted(str(each) for each, visible in self.contacts.items() if visible and str(each) > last)
        content: dict[str, Any] = {"value": [{"contactid": each} for each in ids[: self.page_size]]}
        if len(ids) > self.page_size:
            inner = f"%3ccookie page=%221%22%3e%3ccontactid last=%22%7b{ids[self.page_size - 1].upper()}%7d%22 /%3e"
            token = quote(f'<cookie pagenumber="2" pagingcookie="{inner}" istracking="False" />')
            content["@odata.nextLink"] = f"{self.url}{CONTACTS}?$select=contactid&$skiptoken={token}"
        return Answer(200, content)

    def answer(self, request: Request) -> Response:
        """One request after the other: the server has one thread."""
        answer = Answer(404)
        found = re.fullmatch(rf"{CONTACTS}\(([0-9a-f-]{{36}})\)", request.path)
        if found:
            self.patches.append(UUID(found[1]))
        if request.path == f"/{TENANT}/oauth2/v2.0/token":
            answer = self.give_token(request.form.to_dict())
        elif request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            answer = Answer(401)
        elif request.method == "GET" and request.path == CONTACTS:
            answer = self.list_contacts(request.args.to_dict())
        elif request.method == "PATCH" and found:
            may_create = request.headers.get("If-Match") != "*"
            answer = self.patch(UUID(found[1]), request.get_json(), may_create=may_create)
        content = "" if answer.content is None else json.dumps(answer.content)
        return Response(content, answer.status, answer.headers, content_type="application/json")

    def __enter__(self) -> Self:
        self._server.start()
        self._server.expect_request(re.compile("/")).respond_with_handler(self.answer)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
