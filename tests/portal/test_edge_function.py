"""certjob, the real Edge Function under Deno, and a stand-in of Microsoft's services, over real HTTP.

The details of the function have their own tests in supabase/.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
from deno import find_deno_bin
from werkzeug import Request, Response
from werkzeug.serving import make_server

from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import Facts
from tests.support.waiting import until

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


FUNCTION = Path(__file__).parents[2] / "supabase" / "functions" / "hlf-dynamics-sync"

OPTIONAL = ("AZURE_CLIENT_SECRET_UNTIL",)
"""Settings that the function asks for although they may be missing."""
OFFLINE = ("--no-remote", "--no-npm", "--cached-only", "--no-prompt")


def deno_environment(folder: Path) -> dict[str, str]:
    """Return variables for Deno itself: a cache in this folder, no check for updates, no colours."""
    return {"DENO_DIR": str(folder / "deno"), "HOME": str(folder), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}


@contextmanager
def edge_function(settings: Mapping[str, str], *, log: Path) -> Iterator[str]:
    """Run the function on a free port, and yield its URL. Its output goes to ``log``."""
    allowed = ("--allow-net=127.0.0.1", f"--allow-env={','.join([*settings, *OPTIONAL])}")
    command = [find_deno_bin(), "run", *OFFLINE, *allowed, "index.ts"]
    environment = deno_environment(log.parent) | {"DENO_SERVE_ADDRESS": "tcp:127.0.0.1:0"} | dict(settings)
    listening = re.compile(r"Listening on (http://127\.0\.0\.1:\d+/)\s")
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=FUNCTION, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            until(lambda: process.poll() is not None or listening.search(log.read_text()), seconds=60)
            found = listening.search(log.read_text())
            assert found, log.read_text()
            yield f"{found[1]}functions/v1/hlf-dynamics-sync"
        finally:
            process.terminate()


LOG = "function.log"
KEY = "planted-sync-key-7-of-thirty-two-letters"
FAILURES = "SELECT kind, attempts, error, correlation_id FROM dynamics_sync_failures WHERE resolved_at IS NULL"


def test_own_tests_of_the_function_pass(tmp_path: Path) -> None:
    """They need no file, no variable, and no network except loopback. `make lint` checks the types."""
    command = [find_deno_bin(), "test", "--parallel", *OFFLINE, "--no-check", "--allow-net=127.0.0.1"]
    environment = deno_environment(tmp_path)

    ended = subprocess.run(command, cwd=FUNCTION, env=environment, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stdout[ended.stdout.find(" ERRORS ") :] + ended.stderr
    assert re.search(r"\b\d{3,} passed \| 0 failed", ended.stdout), ended.stdout


@pytest.fixture
def dynamics() -> Iterator[FakeDynamics]:
    with FakeDynamics() as dynamics:
        yield dynamics


@pytest.fixture
def certjob(dynamics: FakeDynamics, here: Certjob, tmp_path: Path) -> Iterator[Certjob]:
    """Run the command in this process, with the running function as its portal."""
    mail = {"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}"}
    with edge_function(dynamics.settings | {"HLF_SYNC_KEY": KEY}, log=tmp_path / LOG) as url:
        settings = mail | {"CERTJOB_PORTAL_URL": url, "CERTJOB_PORTAL_KEY": KEY}
        yield lambda *arguments, **changes: here(*arguments, **settings | changes)


@pytest.fixture
def expired(facts: Facts, dynamics: FakeDynamics) -> list[UUID]:
    """The contacts of M1 to M4, whose certificates ended five days ago. Dynamics still shows them."""
    organisation = facts.organisation()
    contacts = [uuid4() for _ in range(4)]
    for number, contact_id in enumerate(contacts, start=1):
        facts.certified_mentor(organisation, today() - timedelta(days=5), contact_id=contact_id, member_no=f"M{number}")
    dynamics.contacts = dict.fromkeys(contacts, True)
    return contacts


def test_run_hides_mentors_and_reconcile_corrects_manual_changes(
    certjob: Certjob, dynamics: FakeDynamics, facts: Facts, expired: list[UUID]
) -> None:
    """The first four calls meet a cold function, which asks for one token. A show has its last visible day."""
    assert certjob("run").returncode == 0
    assert dynamics.contacts == dict.fromkeys(expired, False)
    assert dynamics.token_requests == 1

    renewed, edited, *_ = expired
    until = today() + timedelta(days=300)
    facts.connection.execute(
        "UPDATE certificates SET expires_on = %s FROM mentors AS m WHERE m.id = mentor_id AND dynamics_contact_id = %s",
        (until, renewed),
    )
    assert certjob("run").returncode == 0
    dynamics.contacts[edited] = True
    assert certjob("reconcile").returncode == 0

    assert dynamics.contacts == dict.fromkeys(expired, False) | {renewed: True}
    assert dynamics.days == dict.fromkeys(expired) | {renewed: until.isoformat()}
    assert "can hide them without certjob" in certjob("check", "--json").stdout


def test_failure_in_dynamics_is_recorded_without_names_and_secrets(
    certjob: Certjob, dynamics: FakeDynamics, facts: Facts, expired: list[UUID], tmp_path: Path
) -> None:
    """A wrong secret, an unknown contact, and throttling of a resync. Dynamics puts PERSON into each error."""
    dynamics.accepts_secret = False
    outputs = [certjob("run", "-v")]
    assert {(kind, attempts) for kind, attempts, *_ in facts.rows(FAILURES)} == {("stage", 0)}
    assert "AADSTS7000215" in str(facts.rows(FAILURES))
    dynamics.accepts_secret = True
    *known, unknown = expired
    del dynamics.contacts[unknown]
    outputs.append(certjob("run", "-v"))
    assert dynamics.contacts == dict.fromkeys(known, False)
    ((kind, attempts, error, correlation_id),) = facts.rows(FAILURES)
    assert (kind, attempts) == ("permanent", 1)
    assert error == "the portal answered 404 contact_not_found (Dynamics has no contact with this id)"
    dynamics.fault = rejection(429, "0x80072321", retry_after="1900")
    outputs.append(certjob("resync", "M1", "-v"))
    assert "429 throttled" in outputs[-1].stderr

    assert [output.returncode for output in outputs] == [3, 3, 3]
    log = (tmp_path / LOG).read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["correlation_id"] for line in lines if line["status"] == 404] == [correlation_id]
    for personal in (PERSON, "example.org", *map(str, expired)):
        assert personal not in log + str(error)
    written = log + "".join(output.stdout + output.stderr for output in outputs)
    for secret in (KEY, CLIENT_SECRET, TOKEN):
        assert secret not in written
