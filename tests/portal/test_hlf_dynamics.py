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
from tests.support.portal_answers import (
    Behaviour,
    Exchange,
    answer,
    cut,
    drip,
    error,
    hang,
    html,
    ok,
    redirect,
    reset,
    wrong_echo,
)
from tests.support.portal_client import PortalClient
from tests.support.portal_server import PortalServer

CONTACT_ID = UUID("0b6c4f3e-9d1a-4c57-8f2e-a1b2c3d4e5f6")

ECHO = json.dumps({"contact_id": str(CONTACT_ID), "visible": False}).encode()
TWO_VALUES = ECHO.replace(b'"visible"', b'"visible": true, "visible"')


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """The stand-in of the Edge Function."""
    with PortalServer() as server:
        yield server


@pytest.fixture
def service(portal: PortalServer) -> Iterator[PortalClient]:
    """The client under test, with the right key."""
    with PortalClient(portal.url, portal.key) as service:
        yield service


def push(service: PortalClient, *, visible: bool = False) -> None:
    service.update_portal_visibility(CONTACT_ID, visible=visible, idempotency_key="4711-2")


def failure(service: PortalClient) -> PortalCallError:
    """The error of a push."""
    with pytest.raises(PortalCallError) as raised:
        push(service)
    return raised.value


@pytest.mark.parametrize("visible", [True, False])
def test_a_push_is_one_post_as_the_contract_says(visible: bool, portal: PortalServer, service: PortalClient) -> None:
    """The address, the three headers, the two values, and nothing else."""
    push(service, visible=visible)

    (request,) = portal.requests
    assert (request.method, request.path) == ("POST", "/functions/v1/hlf-dynamics-sync")
    assert request.headers["authorization"] == f"Bearer {portal.key}"
    assert request.headers["idempotency-key"] == "4711-2"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"certjob/{__version__}"
    assert request.json == {"contact_id": str(CONTACT_ID), "visible": visible}
    assert portal.visible == {CONTACT_ID: visible}


def test_an_echo_in_capitals_is_a_success(portal: PortalServer, service: PortalClient) -> None:
    """A UUID is the same in either case."""
    portal.then(wrong_echo(contact_id=str(CONTACT_ID).upper()))

    push(service)

    assert len(portal.requests) == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(wrong_echo(visible=True), id="other value echoed"),
        pytest.param(wrong_echo(visible=0), id="0 for false"),
        pytest.param(wrong_echo(visible="false"), id="a word for false"),
        pytest.param(wrong_echo(contact_id="11111111-2222-3333-4444-555555555555"), id="other contact echoed"),
        pytest.param(answer(200, {"contact_id": str(CONTACT_ID)}), id="nothing echoed"),
        pytest.param(answer(200, {"contact_id": 7, "visible": False}), id="contact of the wrong type"),
        pytest.param(answer(200, [str(CONTACT_ID), False]), id="a list"),
        pytest.param(answer(200, b'{"contact_id": '), id="invalid JSON"),
        pytest.param(answer(200, TWO_VALUES), id="both values echoed at once"),
        pytest.param(answer(200, ECHO + b"{}"), id="more after the echo"),
        pytest.param(answer(200, ECHO[:-1] + b', "error": {"code": "x", "message": ""}}'), id="an echo and an error"),
        pytest.param(wrong_echo(contact_id=f"{{{CONTACT_ID}}}"), id="contact in braces"),
        pytest.param(wrong_echo(contact_id=f"urn:uuid:{CONTACT_ID}"), id="contact as a URN"),
        pytest.param(answer(200, b"[" * 50_000), id="nested beyond reason"),
        pytest.param(answer(200, b"\xff\xfe\xfd"), id="no text"),
        pytest.param(answer(200), id="empty"),
        pytest.param(html(200), id="a web page"),
        pytest.param(error(200, "contact_not_found"), id="an envelope under 200"),
        pytest.param(answer(200, {"filler": "x" * 100_000}), id="too long"),
        pytest.param(answer(202, {"contact_id": str(CONTACT_ID), "visible": False}), id="only accepted"),
        pytest.param(answer(204), id="no content"),
        pytest.param(error(408, "contact_not_found"), id="408"),
        pytest.param(html(408), id="408 page"),
        pytest.param(html(425), id="425 page"),
        pytest.param(error(429, "throttled"), id="429 throttled"),
        pytest.param(html(429), id="429 page"),
        pytest.param(html(500), id="500 page"),
        pytest.param(error(502, "dynamics_unavailable"), id="502 dynamics_unavailable"),
        pytest.param(error(503, "token_unavailable"), id="503 token_unavailable"),
        pytest.param(html(504), id="504 page"),
        pytest.param(error(500, "contact_not_found"), id="a contact's code under 500"),
        pytest.param(error(409, "contact_locked"), id="an unknown code of ours"),
        pytest.param(reset(), id="reset"),
        pytest.param(cut(), id="cut answer"),
    ],
)
def test_whatever_may_pass_is_transient(behaviour: Behaviour, portal: PortalServer, service: PortalClient) -> None:
    """Worth another try: the network, throttling, a broken server, an answer that is not the contract."""
    portal.then(behaviour)

    assert type(failure(service)) is TransientPortalError
    assert len(portal.requests) == 1


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "contact_not_found"), (400, "invalid_request"), (422, "dynamics_rejected"), (400, "contact_not_found")],
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
        pytest.param(error(401, "unauthorized"), "CERTJOB_PORTAL_KEY", id="401"),
        pytest.param(html(401), "CERTJOB_PORTAL_KEY", id="401 page"),
        pytest.param(
            answer(401, {"code": 401, "message": "Invalid JWT"}), "verify_jwt", id="401 by Supabase's gateway"
        ),
        pytest.param(html(403), "CERTJOB_PORTAL_KEY", id="403"),
        pytest.param(error(403, "contact_not_found"), "CERTJOB_PORTAL_KEY", id="403 with a contact's code"),
        pytest.param(error(405, "method_not_allowed"), "CERTJOB_PORTAL_URL", id="405"),
        pytest.param(html(413), "CERTJOB_PORTAL_URL", id="413"),
        pytest.param(error(500, "misconfigured"), "secrets", id="misconfigured"),
        pytest.param(error(400, "misconfigured"), "secrets", id="misconfigured under 400"),
        pytest.param(redirect("https://elsewhere.example/"), "redirect", id="302"),
        pytest.param(redirect("/elsewhere", status=308), "redirect", id="308"),
        pytest.param(answer(304), "redirect", id="304"),
        pytest.param(html(404), "deployed", id="404 page"),
        pytest.param(answer(404, b"x" * 200_000), "deployed", id="404, a long page"),
        pytest.param(answer(404, {"code": "NOT_FOUND", "message": "Function not found"}), "deployed", id="gateway"),
        pytest.param(error(404, "ResourceNotFound"), "deployed", id="a gateway's code in an envelope like ours"),
        pytest.param(answer(404, {"error": "contact_not_found"}), "deployed", id="error is a word"),
        pytest.param(answer(404, {"error": {"code": 404}}), "deployed", id="code is a number"),
        pytest.param(answer(404, {"error": {"message": "contact_not_found"}}), "deployed", id="no code"),
        pytest.param(html(410), "deployed", id="410 page"),
        pytest.param(answer(400), "deployed", id="400, empty"),
        pytest.param(html(499), "deployed", id="a status without a name"),
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


def test_a_wrong_key_concerns_the_stage(portal: PortalServer) -> None:
    """And is not part of the text."""
    with PortalClient(portal.url, "some-other-key") as service:
        raised = failure(service)

    assert type(raised) is PortalStageError
    assert "some-other-key" not in str(raised)


def test_the_key_does_not_follow_a_redirect(portal: PortalServer, service: PortalClient) -> None:
    """Whoever answers there would have it."""
    with PortalServer() as elsewhere:
        portal.then(redirect(elsewhere.url, status=307))
        failure(service)

    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "behaviour",
    [hang(applied=True), drip(part="headers", every_seconds=0.01), drip(part="body", every_seconds=0.01)],
    ids=["silence", "dripping headers", "dripping body"],
)
def test_an_answer_that_does_not_end_is_transient(behaviour: Behaviour, portal: PortalServer) -> None:
    """The deadline is the whole call's, and the service goes on working after it."""
    portal.then(behaviour)

    with PortalClient(portal.url, portal.key, deadline_seconds=0.2) as service:
        raised = failure(service)
        assert type(raised) is TransientPortalError
        assert str(raised) == "no whole answer from the portal within 0.2 s"

    with PortalClient(portal.url, portal.key) as service:
        push(service)
    assert portal.overlaps == []


def test_no_server_is_transient() -> None:
    """With the system's word for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with PortalClient(f"http://127.0.0.1:{port}/", "planted-key") as service:
        raised = failure(service)

    assert type(raised) is TransientPortalError
    assert str(raised).startswith("no connection to the portal: ")
    assert "refused" in str(raised)


def test_no_connection_in_time_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead name server, here; a dead network looks the same."""
    resolved = threading.Event()

    def look_up(*_arguments: object, **_options: object) -> list[object]:
        resolved.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    with PortalClient("http://portal.example/", "planted-key", deadline_seconds=0.05) as service:
        raised = failure(service)

    resolved.set()
    assert type(raised) is TransientPortalError
    assert str(raised) == "no connection to the portal within 0.05 s"


def test_a_connection_dropped_between_two_pushes_is_no_failure(portal: PortalServer, service: PortalClient) -> None:
    """Idle connections are closed by servers all the time."""
    portal.then(ok(then_reset=True))
    push(service)
    portal.wait_until(lambda: portal.open_connections == 0)

    push(service, visible=True)

    assert portal.visible == {CONTACT_ID: True}


def test_pushes_share_a_connection(portal: PortalServer, service: PortalClient) -> None:
    """Failures that the function answered do not cost a new one."""
    portal.then(ok(), error(503, "token_unavailable"), error(404, "contact_not_found"), ok())

    for _ in range(4):
        try:
            push(service)
        except PortalCallError:
            continue

    assert portal.connections_made == 1


@pytest.mark.parametrize("status", [200, 408, 429, 500, 503])
def test_retry_after_in_seconds_goes_with_every_transient_answer(
    status: int, portal: PortalServer, service: PortalClient
) -> None:
    """Whatever the status."""
    portal.then(error(status, "throttled", retry_after="17"))

    assert failure(service).retry_after_seconds == 17


def test_retry_after_as_a_date_counts_from_now(portal: PortalServer, service: PortalClient) -> None:
    """HTTP's other form of it."""
    moment = datetime.now(UTC) + timedelta(seconds=600)
    portal.then(error(503, "token_unavailable", retry_after=format_datetime(moment, usegmt=True)))

    seconds = failure(service).retry_after_seconds

    assert seconds is not None
    assert 550 < seconds <= 600


def test_retry_after_as_a_date_is_read_by_the_servers_own_clock(portal: PortalServer, service: PortalClient) -> None:
    """Its clock is a minute behind ours; half a minute is what it asks for."""
    its_now = datetime.now(UTC) - timedelta(seconds=60)
    headers = {
        "Date": format_datetime(its_now, usegmt=True),
        "Retry-After": format_datetime(its_now + timedelta(seconds=30), usegmt=True),
    }
    portal.then(answer(429, {"error": {"code": "throttled", "message": ""}}, headers=headers))

    assert failure(service).retry_after_seconds == 30


def test_without_retry_after_nothing_is_asked_for(portal: PortalServer, service: PortalClient) -> None:
    """A missing header and a senseless one are the same."""
    portal.then(error(429, "throttled"), error(429, "throttled", retry_after="in a while"))

    assert failure(service).retry_after_seconds is None
    assert failure(service).retry_after_seconds is None


def test_the_correlation_id_goes_with_the_error(portal: PortalServer, service: PortalClient) -> None:
    """It leads to the function's log; without an answer there is none."""
    portal.then(error(503, "token_unavailable"), error(404, "contact_not_found"), html(404), reset())

    assert [failure(service).correlation_id for _ in range(4)] == ["test-1", "test-2", "test-3", None]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("x" * 500, "x" * 200), ("før", "fr"), ("", None), ("planted-portal-key", "***")],
)
def test_a_correlation_id_is_cleaned(sent: str, kept: str | None, portal: PortalServer, service: PortalClient) -> None:
    """Printable ASCII only, at most 200 characters, never our key: it ends up in a table and on a terminal."""
    portal.then(answer(503, headers={"X-Correlation-Id": sent}))

    assert failure(service).correlation_id == kept


def test_the_text_of_an_error_is_short_clean_and_without_the_key(portal: PortalServer, service: PortalClient) -> None:
    """A message may hold anything; a body that is no envelope is not quoted at all."""
    portal.then(
        error(422, "dynamics_rejected", message=f"no\x00\x1b[2J\n\u202e{portal.key} " + "y" * 900),
        answer(500, b"secret page " + portal.key.encode()),
    )

    text = str(failure(service))
    assert text.startswith("the portal answered 422 dynamics_rejected (no [2J *** yyy")
    assert text.isprintable()
    assert len(text) < 260

    assert str(failure(service)) == "the portal answered 500 Internal Server Error"


def answers_like_a_mail_server(exchange: Exchange) -> None:
    exchange.send(b"220 mail.example ESMTP\r\n")
    exchange.close()


def test_what_is_not_http_is_transient_and_not_quoted(portal: PortalServer, service: PortalClient) -> None:
    """The parser's own error would show what came over the wire."""
    portal.then(answers_like_a_mail_server)

    raised = failure(service)

    assert type(raised) is TransientPortalError
    assert "220" not in str(raised)


@pytest.mark.parametrize("key", ["", "two words", "line\n", "nøkkel"])
def test_a_key_that_http_cannot_carry_is_a_wrong_setting(key: str) -> None:
    """Said at once, with the variable's name and without its value."""
    with pytest.raises(ConfigurationError, match="CERTJOB_PORTAL_KEY") as raised:
        PortalClient("https://portal.example/", key)

    assert not key or key not in str(raised.value)


def test_a_url_that_is_none_is_a_wrong_setting() -> None:
    """Settings look at it first; this is for whoever comes without them."""
    with pytest.raises(ConfigurationError, match="CERTJOB_PORTAL_URL"):
        PortalClient("https://portal.example:port/", "planted-key")


@pytest.mark.parametrize(
    ("behaviour", "is_unknown"),
    [
        (error(504, "outcome_unknown"), True),
        (html(504), True),
        (html(546), True),
        (html(502), True),
        (error(500, "internal_error"), True),
        (html(200), True),
        (cut(), True),
        (reset(), True),
        (hang(), True),
        (error(502, "dynamics_unavailable"), False),
        (error(503, "token_unavailable"), False),
        (error(429, "throttled"), False),
    ],
    ids=[
        "504",
        "a gateway's 504",
        "a worker that was ended",
        "a gateway's 502",
        "a bug",
        "a page",
        "cut answer",
        "reset",
        "no answer",
        "502",
        "503",
        "429",
    ],
)
def test_the_outcome_is_unknown_once_the_request_was_sent(
    behaviour: Behaviour, is_unknown: bool, portal: PortalServer
) -> None:
    """Unless the function says that it was not done."""
    portal.then(behaviour)

    with PortalClient(portal.url, portal.key, deadline_seconds=0.5) as service:
        raised = failure(service)

    assert type(raised) is TransientPortalError
    assert (raised.code is FailureCode.OUTCOME_UNKNOWN) is is_unknown
    portal.release()


def test_what_was_not_sent_was_not_done() -> None:
    """Nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with PortalClient(f"http://127.0.0.1:{port}/", "planted-key") as service:
        assert failure(service).code is FailureCode.PORTAL_NO_ANSWER
