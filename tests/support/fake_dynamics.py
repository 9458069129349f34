"""Entra and Dataverse as one real HTTP server on loopback, for the Edge Function to call; it misbehaves as told.

    with FakeDynamics([contact_id]) as dynamics:
        dynamics.faults.append(refusal(429, "0x80072322", retry_after="1"))
        ...                                     # the function pushes
        assert dynamics.contacts == {contact_id: False}

Each PATCH, and each page of the contacts, takes the next fault of the list; when there is none left, ``outage``;
without one Dataverse works. Pages are in the order of the ids, with a cookie of their last one, as Dataverse's are.
"""

import json
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID

TENANT = "planted-tenant"
CLIENT_ID = "planted-client-id"
FIELD = "hlf_visibleonportal"
PERSON = "Kari Nordmann"
"""Whom Dataverse's error texts name; a person does not belong into answers or logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes over the wire."""

    status: int
    content: Any = None
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int, code: str, *, retry_after: str | None = None) -> Answer:
    """An error in Dataverse's own form."""
    content = {"error": {"code": code, "message": f"contact of {PERSON}"}}
    return Answer(status=status, content=content, headers={"Retry-After": retry_after} if retry_after else {})


def no_token(status: int, error: str, number: int, *, retry_after: str | None = None) -> Answer:
    """An error in Entra's own form."""
    content = {"error": error, "error_description": f"AADSTS{number}: {PERSON}", "error_codes": [number]}
    return Answer(status=status, content=content, headers={"Retry-After": retry_after} if retry_after else {})


UNKNOWN_COLUMN = Answer(
    status=400,
    content={
        "error": {
            "code": "0x0",
            "message": "Could not find a property named 'x' on type 'Microsoft.Dynamics.CRM.contact'.",
        }
    },
)
"""A column that the table does not have. Source: Microsoft, "Troubleshoot Dataverse Web API client errors"."""


class FakeDynamics:
    """Both services; a context manager. Its attributes may be read and set at any time."""

    def __init__(self, contacts: Iterable[UUID] = ()) -> None:
        self.contacts: dict[UUID, bool | None] = dict.fromkeys(contacts, True)
        """What the portal shows; None is a column that nobody has filled in."""
        self.page_size = 5000
        self.client_secret = "planted~client~secret"
        """What Entra takes for the application's secret."""
        self.faults: list[Answer] = []
        self.outage: Answer | None = None
        self.entra_outage: Answer | None = None
        self.token_requests = 0
        self.patches: list[tuple[UUID, bool]] = []
        """Every change that Dataverse was asked for, refused or not, in order."""
        self.pages_read = 0
        self.changed = threading.Condition()
        self._tokens: set[str] = set()
        self._server = _Server(self)

    @property
    def url(self) -> str:
        """Where both listen: the paths tell them apart."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def expire_tokens(self) -> None:
        """Let no token that was handed out so far be good any more."""
        with self.changed:
            self._tokens.clear()

    def wait_for_patches(self, number: int) -> None:
        """Wait until Dataverse was asked so often."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.patches) >= number, 20), "Dataverse waited in vain"

    def give_token(self, form: dict[str, list[str]]) -> Answer:
        """Answer the application that asks for a token."""
        with self.changed:
            self.token_requests += 1
            if self.entra_outage is not None:
                return self.entra_outage
            if form.get("client_secret") != [self.client_secret]:
                return no_token(401, "invalid_client", 7000215)
            asked = {"client_id": [CLIENT_ID], "grant_type": ["client_credentials"], "scope": [f"{self.url}/.default"]}
            if any(form.get(name) != value for name, value in asked.items()):
                return no_token(400, "invalid_request", 900144)
            token = f"planted-token-{self.token_requests}"
            self._tokens.add(token)
            return Answer(status=200, content={"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def patch(self, contact_id: UUID, content: Any, *, token: str, may_create: bool) -> Answer:
        """Answer a change of one contact."""
        with self.changed:
            self.patches.append((contact_id, next(iter(content.values()))))
            self.changed.notify_all()
            if token not in self._tokens:
                return Answer(status=401)
            if set(content) != {FIELD}:
                return UNKNOWN_COLUMN
            fault = self.faults.pop(0) if self.faults and contact_id in self.contacts else self.outage
            if fault is not None:
                return fault
            if contact_id not in self.contacts and not may_create:
                return refusal(404, "0x80040217")
            self.contacts[contact_id] = content[FIELD]
            return Answer(status=204)

    def list_contacts(self, query: dict[str, list[str]], *, token: str) -> Answer:
        """Answer a page of the active contacts that are visible."""
        with self.changed:
            self.pages_read += 1
            if token not in self._tokens:
                return Answer(status=401)
            if query.get("$filter") != [f"{FIELD} eq true and statecode eq 0"]:
                return UNKNOWN_COLUMN
            fault = self.faults.pop(0) if self.faults else self.outage
            if fault is not None:
                return fault
            cookie = re.search(r"contactid last=%22%7b(.{36})%7d", query.get("$skiptoken", [""])[0])
            last = cookie[1].lower() if cookie else ""
            ids = sorted(str(each) for each, visible in self.contacts.items() if visible and str(each) > last)
            rows = [{"@odata.etag": 'W/"1"', "contactid": each} for each in ids[: self.page_size]]
            content: dict[str, Any] = {"value": rows}
            if len(ids) > self.page_size:
                inner = f"%3ccookie page=%221%22%3e%3ccontactid last=%22%7b{ids[self.page_size - 1].upper()}%7d%22 /%3e"
                token = quote(f'<cookie pagenumber="2" pagingcookie="{inner}" istracking="False" />')
                content["@odata.nextLink"] = f"{self.url}/api/data/v9.2/contacts?$select=contactid&$skiptoken={token}"
            return Answer(status=200, content=content)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="dynamics", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, dynamics: FakeDynamics) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dynamics = dynamics


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self._body().decode()
        if self.path != f"/{TENANT}/oauth2/v2.0/token":
            self._send(no_token(400, "invalid_request", 900023))
            return
        self._send(self.server.dynamics.give_token(parse_qs(body)))

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path != "/api/data/v9.2/contacts":
            self._send(Answer(status=404))
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self._send(self.server.dynamics.list_contacts(parse_qs(url.query), token=token))

    def do_PATCH(self) -> None:
        body = self._body()
        found = re.fullmatch(r"/api/data/v9\.2/contacts\(([0-9a-f-]{36})\)", self.path)
        if found is None:
            self._send(Answer(status=404))
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        may_create = self.headers.get("If-Match") != "*"
        answer = self.server.dynamics.patch(UUID(found[1]), json.loads(body), token=token, may_create=may_create)
        self._send(answer)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _send(self, answer: Answer) -> None:
        body = b"" if answer.content is None else json.dumps(answer.content).encode()
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 204:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
