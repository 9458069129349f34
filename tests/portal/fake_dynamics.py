"""Entra and Dataverse as one real HTTP server on loopback for the Edge Function, with faults on demand.

Each PATCH of an existing contact gets the next fault of the list. After the last one, Dataverse works.
"""

import json
import re
from typing import Any, Self
from uuid import UUID

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

CLIENT_ID = "planted-client-id"
CLIENT_SECRET = "planted~client~secret"
FIELD = "hlf_visibleonportal"
DAY_FIELD = "hlf_visibleuntil"
PERSON = "Kari Nordmann"
"""A name in error texts. It must not appear in answers or logs."""


def answer(status: int, content: Any = None, *, retry_after: str | None = None) -> Response:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Response(json.dumps(content) if content else "", status, headers, content_type="application/json")


def refusal(status: int, code: str, *, said: str = f"contact of {PERSON}", retry_after: str | None = None) -> Response:
    """Return an error in Dataverse's own format."""
    return answer(status, {"error": {"code": code, "message": said}}, retry_after=retry_after)


class FakeDynamics:
    """Both services, as a context manager. Tests read and set its attributes at any time."""

    secrets = (CLIENT_SECRET, CLIENT_ID, "planted-token")
    """Values that must not appear in any text."""

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        """Valid tokens. Clear the set to let all tokens expire."""
        self._server = HTTPServer(host="127.0.0.1")
        self.begin_anew()

    def begin_anew(self) -> None:
        """Delete contacts, faults and records. The tokens stay valid."""
        self.contacts: dict[UUID, bool] = {}
        """Whether the portal shows each contact."""
        self.days: dict[UUID, str | None] = {}
        """The values of the column DAY_FIELD."""
        self.faults: list[Response] = []
        self.token_requests = 0
        self.patches: list[UUID] = []
        """The contacts of all requested changes in order, also of rejected ones."""

    @property
    def settings(self) -> dict[str, str]:
        """Return settings with which the function calls this server. The services have different paths."""
        url = f"http://127.0.0.1:{self._server.port}"
        entra = {"AZURE_TENANT_ID": "planted", "AZURE_CLIENT_ID": CLIENT_ID, "AZURE_CLIENT_SECRET": CLIENT_SECRET}
        columns = {"DYNAMICS_VISIBILITY_FIELD": FIELD, "DYNAMICS_VISIBLE_UNTIL_FIELD": ""}
        return entra | columns | {"AZURE_AUTHORITY": url, "DYNAMICS_URL": url}

    def give_token(self, form: dict[str, str]) -> Response:
        """Answer a request for a token."""
        self.token_requests += 1
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            said = {"error_description": f"AADSTS7000215: {PERSON}", "error_codes": [7000215]}
            return answer(401, {"error": "invalid_client"} | said)
        token = f"planted-token-{len(self.tokens)}-{self.token_requests}"
        self.tokens.add(token)
        return answer(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": token})

    def patch(self, contact_id: UUID, content: dict[str, Any]) -> Response:
        """Change one contact, and answer with its new values."""
        if not {FIELD} <= set(content) <= {FIELD, DAY_FIELD}:
            # Microsoft, "Troubleshoot Dataverse Web API client errors"
            said = "Could not find a property named 'x' on type 'Microsoft.Dynamics.CRM.contact'."
            return refusal(400, "0x0", said=said)
        if contact_id not in self.contacts:
            return refusal(404, "0x80040217")
        if self.faults:
            return self.faults.pop(0)
        self.contacts[contact_id] = content[FIELD]
        if DAY_FIELD in content:
            self.days[contact_id] = content[DAY_FIELD]
        return answer(200, {"contactid": str(contact_id)} | content)

    def answer(self, request: Request) -> Response:
        """Answer a request. The server has one thread."""
        if request.path == "/planted/oauth2/v2.0/token":
            return self.give_token(request.form.to_dict())
        contact = re.fullmatch(r"/api/data/v9\.2/contacts(?:\(([0-9a-f-]{36})\))?", request.path)
        assert contact, request.path
        self.patches += [UUID(contact[1])] if contact[1] else []
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return answer(401)
        if request.method == "PATCH":
            assert request.headers["If-Match"] == "*"  # otherwise Dataverse would create the contact
            return self.patch(UUID(contact[1]), request.get_json())
        assert request.args["$filter"] == f"{FIELD} eq true and statecode eq 0"
        visible = sorted(each for each, shown in self.contacts.items() if shown)
        rows = [{"contactid": str(each), DAY_FIELD: self.days.get(each)} for each in visible]
        columns = request.args["$select"].split(",")
        return answer(200, {"value": [{name: row[name] for name in columns} for row in rows]})

    def __enter__(self) -> Self:
        self._server.start()
        self._server.expect_request(re.compile("/")).respond_with_handler(self.answer)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
