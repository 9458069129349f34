"""Entra and Dataverse as one real HTTP server on loopback, for the Edge Function."""

import json
from threading import Thread
from typing import Any, Self
from uuid import UUID

from werkzeug import Request, Response
from werkzeug.serving import make_server

CLIENT_SECRET = "planted~client~secret"
TOKEN = "planted-token"
FIELD, DAY_FIELD = "hlf_visibleonportal", "hlf_visibleuntil"
PERSON = "Kari Nordmann"
"""A name in error texts. It must not appear in answers or logs."""


def response(status: int, content: Any = None, *, retry_after: str = "") -> Response:
    headers = {"Retry-After": retry_after} if retry_after else {}
    return Response(json.dumps(content) if content else "", status, headers, content_type="application/json")


def rejection(status: int, code: str, *, retry_after: str = "") -> Response:
    """Return an error in Dataverse's own format."""
    return response(status, {"error": {"code": code, "message": f"contact of {PERSON}"}}, retry_after=retry_after)


class FakeDynamics:
    """Both services, as a context manager. Tests read and set its attributes at any time."""

    def __init__(self) -> None:
        self.contacts: dict[UUID, bool] = {}
        """Whether the portal shows each contact."""
        self.days: dict[UUID, str | None] = {}
        """The last visible day of each contact."""
        self.fault: Response | None = None
        """The answer to every change of an existing contact, instead of the change."""
        self.accepts_secret = True
        self.token_requests = 0
        self._server = make_server("127.0.0.1", 0, Request.application(self._answer))

    @property
    def settings(self) -> dict[str, str]:
        """Return settings with which the function calls this server."""
        url = f"http://127.0.0.1:{self._server.port}"
        entra = {"AZURE_TENANT_ID": "planted", "AZURE_CLIENT_ID": "planted", "AZURE_CLIENT_SECRET": CLIENT_SECRET}
        columns = {"DYNAMICS_VISIBILITY_FIELD": FIELD, "DYNAMICS_VISIBLE_UNTIL_FIELD": DAY_FIELD}
        return entra | columns | {"AZURE_AUTHORITY": url, "DYNAMICS_URL": url}

    def _answer(self, request: Request) -> Response:
        if request.path == "/planted/oauth2/v2.0/token":
            self.token_requests += 1
            if not self.accepts_secret or request.form["client_secret"] != CLIENT_SECRET:
                said = {"error_description": f"AADSTS7000215: {PERSON}", "error_codes": [7000215]}
                return response(401, {"error": "invalid_client"} | said)
            return response(200, {"token_type": "Bearer", "expires_in": 3599, "access_token": TOKEN})
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        if request.method == "PATCH":
            return self._change(request)
        visible = sorted(contact for contact, is_shown in self.contacts.items() if is_shown)
        return response(200, {"value": [{"contactid": str(each), DAY_FIELD: self.days.get(each)} for each in visible]})

    def _change(self, request: Request) -> Response:
        assert request.headers["If-Match"] == "*"  # otherwise Dataverse would create the contact
        contact_id, values = UUID(request.path[-37:-1]), request.get_json()
        if contact_id not in self.contacts:
            return rejection(404, "0x80040217")
        if self.fault is not None:
            return self.fault
        self.contacts[contact_id], self.days[contact_id] = values[FIELD], values[DAY_FIELD]
        return response(200, {"contactid": str(contact_id)} | values)

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.02,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
