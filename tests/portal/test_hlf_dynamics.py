"""What each outcome of a call to the Edge Function means, against a real server on loopback."""

import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from uuid import UUID

import pytest

from certjob import __version__
from certjob.errors import (
    ConfigurationError,
    FailureCode,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    TransientPortalError,
)
from tests.support.portal_answers import Behaviour, Exchange, answer, cut, drip, error, hang, html, ok, redirect, reset
from tests.support.portal_answers import wrong_echo as echo
from tests.support.portal_client import PortalClient
from tests.support.portal_server import PortalServer

CONTACT_ID = UUID("0b6c4f3e-9d1a-4c57-8f2e-a1b2c3d4e5f6")
ECHO = json.dumps({"contact_id": str(CONTACT_ID), "visible": False}).encode()


@pytest.fixture
def service(portal: PortalServer) -> Iterator[PortalClient]:
    """The client under test, with the right key."""
    with PortalClient(portal.url, portal.key) as service:
        yield service


def push(service: PortalClient, *, visible: bool = False) -> None:
    service.update_portal_visibility(CONTACT_ID, visible=visible, idempotency_key="4711-2")


def failure(service: PortalClient) -> PortalCallError:
    with pytest.raises(PortalCallError) as raised:
        push(service)
    return raised.value


@pytest.mark.parametrize("visible", [True, False])
def test_a_push_is_one_post_as_the_contract_says(visible: bool, portal: PortalServer, service: PortalClient) -> None:
    push(service, visible=visible)

    (request,) = portal.requests
    assert (request.method, request.path) == ("POST", "/functions/v1/hlf-dynamics-sync")
    assert request.headers["authorization"] == f"Bearer {portal.key}"
    assert request.headers["idempotency-key"] == "4711-2"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"certjob/{__version__}"
    assert request.json == {"contact_id": str(CONTACT_ID), "visible": visible}
    assert portal.visible == {CONTACT_ID: visible}


def answers_like_a_mail_server(exchange: Exchange) -> None:
    exchange.send(b"220 mail.example ESMTP\r\n")
    exchange.close()


MAY_BE_DONE = {
    "other value echoed": echo(visible=True),
    "0 for false": echo(visible=0),
    "other contact echoed": echo(contact_id="11111111-2222-3333-4444-555555555555"),
    "contact in braces": echo(contact_id=f"{{{CONTACT_ID}}}"),
    "nothing echoed": answer(200, {"contact_id": str(CONTACT_ID)}),
    "a list": answer(200, [str(CONTACT_ID), False]),
    "invalid JSON": answer(200, b'{"contact_id": '),
    "both values at once": answer(200, ECHO.replace(b'"visible"', b'"visible": true, "visible"')),
    "an echo and an error": answer(200, ECHO[:-1] + b', "error": {"code": "x", "message": ""}}'),
    "nested beyond reason": answer(200, b"[" * 50_000),
    "too long": answer(200, ECHO[:-1] + b" " * 100_000 + b"}"),
    "only accepted": answer(202, ECHO),
    "an envelope under 200": error(200, "contact_not_found"),
    "a page under 500": html(500),
    "a gateway's 504": html(504),
    "a contact's code under 500": error(500, "contact_not_found"),
    "outcome_unknown": error(504, "outcome_unknown"),
    "reset": reset(),
    "cut answer": cut(),
    "no answer": hang(),
    "no HTTP": answers_like_a_mail_server,
}
NOT_DONE = {
    "408 with a contact's code": error(408, "contact_not_found"),
    "425": html(425),
    "429": error(429, "throttled"),
    "502": error(502, "dynamics_unavailable"),
    "503": error(503, "token_unavailable"),
    "an unknown code of ours": error(409, "contact_locked"),
}


@pytest.mark.parametrize("name", [*MAY_BE_DONE, *NOT_DONE])
def test_whatever_may_pass_is_transient(name: str, portal: PortalServer) -> None:
    """Once the request was sent its outcome is unknown, unless the function says that nothing was done."""
    portal.then((MAY_BE_DONE | NOT_DONE)[name])

    with PortalClient(portal.url, portal.key, deadline_seconds=0.6 if name == "no answer" else 10) as service:
        raised = failure(service)

    assert type(raised) is TransientPortalError
    assert (raised.code is FailureCode.OUTCOME_UNKNOWN) is (name in MAY_BE_DONE)
    assert len(portal.requests) == 1
    assert "220" not in str(raised)  # what is no HTTP is not quoted


def test_no_server_is_transient_and_nothing_was_sent() -> None:
    """With the system's word for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with PortalClient(f"http://127.0.0.1:{port}/", "planted-key") as service:
        raised = failure(service)

    assert type(raised) is TransientPortalError
    assert str(raised).startswith("no connection to the portal: ")
    assert "refused" in str(raised)
    assert raised.code is FailureCode.PORTAL_NO_ANSWER


def test_no_connection_in_time_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead name server, here; a dead network looks the same."""
    resolved = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: resolved.wait(30) and [])

    with PortalClient("http://portal.example/", "planted-key", deadline_seconds=0.05) as service:
        raised = failure(service)

    resolved.set()
    assert type(raised) is TransientPortalError
    assert str(raised) == "no connection to the portal within 0.05 s"


def test_an_answer_that_drips_is_over_by_the_deadline(portal: PortalServer) -> None:
    portal.then(drip(part="body", every_seconds=0.01))

    with PortalClient(portal.url, portal.key, deadline_seconds=0.2) as service:
        raised = failure(service)

    assert type(raised) is TransientPortalError
    assert str(raised) == "no whole answer from the portal within 0.2 s"


@pytest.mark.parametrize(
    ("status", "code"), [(404, "contact_not_found"), (400, "invalid_request"), (422, "dynamics_rejected")]
)
def test_our_codes_about_the_contact_are_permanent(
    status: int, code: str, portal: PortalServer, service: PortalClient
) -> None:
    """Nothing but a correction helps; the text names the code and what the function said."""
    portal.then(error(status, code, message="See the contact."))

    raised = failure(service)

    assert type(raised) is PermanentPortalError
    assert str(raised) == f"the portal answered {status} {code} (See the contact.)"
    assert raised.retry_after_seconds is None


@pytest.mark.parametrize(
    ("behaviour", "hint"),
    [
        (error(401, "unauthorized"), "; check CERTJOB_PORTAL_KEY"),
        (answer(401, {"code": 401, "message": "Invalid JWT"}), "verify_jwt"),
        (error(403, "contact_not_found"), "CERTJOB_PORTAL_KEY"),
        (error(405, "method_not_allowed"), "CERTJOB_PORTAL_URL"),
        (html(413), "CERTJOB_PORTAL_URL"),
        (error(500, "misconfigured"), "secrets"),
        (error(400, "misconfigured"), "secrets"),
        (redirect("https://elsewhere.example/"), "redirect"),
        (answer(304), "redirect"),
        (answer(404, b"x" * 200_000), "deployed"),
        (error(404, "ResourceNotFound"), "deployed"),  # a gateway's code, in an envelope like ours
        (answer(404, {"error": "contact_not_found"}), "deployed"),
        (answer(404, {"error": {"code": 404}}), "deployed"),
        (html(499), "deployed"),  # a status without a name
    ],
)
def test_what_everybody_would_get_concerns_the_stage(
    behaviour: Behaviour, hint: str, portal: PortalServer, service: PortalClient
) -> None:
    """Nobody may be blocked for a wrong key or a failed deploy; the text says the next step."""
    portal.then(behaviour)

    raised = failure(service)

    assert type(raised) is PortalStageError
    assert hint in str(raised)
    assert raised.retry_after_seconds is None


def test_the_key_does_not_follow_a_redirect(portal: PortalServer, service: PortalClient) -> None:
    with PortalServer() as elsewhere:
        portal.then(redirect(elsewhere.url, status=307))
        failure(service)

    assert elsewhere.requests == []


def test_pushes_share_a_connection_until_the_server_drops_it(portal: PortalServer, service: PortalClient) -> None:
    """Failures that the function answered do not cost a new one; a dropped one is no failure."""
    portal.then(error(503, "token_unavailable"), error(404, "contact_not_found"), ok(then_reset=True))
    failure(service)
    failure(service)
    push(service)
    assert portal.connections_made == 1
    portal.wait_until(lambda: portal.open_connections == 0)

    push(service, visible=True)

    assert portal.visible == {CONTACT_ID: True}


def test_retry_after_is_kept(portal: PortalServer, service: PortalClient) -> None:
    """In seconds under any status, as a date by the server's own clock, or not at all."""
    now = datetime.now(UTC)
    behind = {
        "Date": format_datetime(now - timedelta(seconds=60), usegmt=True),
        "Retry-After": format_datetime(now - timedelta(seconds=30), usegmt=True),
    }
    in_ten_minutes = format_datetime(now + timedelta(seconds=600), usegmt=True)
    portal.then(
        error(200, "throttled", retry_after="17"),
        error(503, "throttled", retry_after="17"),
        answer(429, headers=behind),
        error(429, "throttled", retry_after="in a while"),
        error(429, "throttled"),
        error(503, "token_unavailable", retry_after=in_ten_minutes),
    )

    assert [failure(service).retry_after_seconds for _ in range(5)] == [17, 17, 30, None, None]
    assert 550 < (failure(service).retry_after_seconds or 0) <= 600


def test_the_correlation_id_goes_with_the_error(portal: PortalServer, service: PortalClient) -> None:
    """Printable ASCII only, at most 200 characters, never our key: it ends up in a table and on a terminal."""
    sent = ["x" * 500, "før", "", portal.key]
    portal.then(error(404, "contact_not_found"), *(answer(503, headers={"X-Correlation-Id": each}) for each in sent))
    portal.then(reset())

    kept = [failure(service).correlation_id for _ in range(6)]

    assert kept == ["test-1", "x" * 200, "fr", None, "<secret>", None]


def test_the_text_of_an_error_is_short_clean_and_without_the_key(portal: PortalServer, service: PortalClient) -> None:
    """A message may hold anything; a body that is no envelope is not quoted at all."""
    portal.then(
        error(422, "dynamics_rejected", message=f"no\x00\x1b[2J\n\u202e{portal.key} " + "y" * 900),
        answer(500, b"secret page " + portal.key.encode()),
    )

    text = str(failure(service))
    assert text.startswith("the portal answered 422 dynamics_rejected (no [2J <secret> yyy")
    assert text.isprintable()
    assert len(text) < 260

    assert str(failure(service)) == "the portal answered 500 Internal Server Error"


@pytest.mark.parametrize("key", ["", "two words", "line\n", "nøkkel"])
def test_a_key_that_http_cannot_carry_is_a_wrong_setting(key: str) -> None:
    """Said at once, with the variable's name and without its value."""
    with pytest.raises(ConfigurationError, match="CERTJOB_PORTAL_KEY") as raised:
        PortalClient("https://portal.example/", key)

    assert not key or key not in str(raised.value)


def test_a_url_that_is_none_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="CERTJOB_PORTAL_URL"):
        PortalClient("https://portal.example:port/", "planted-key")
