"""Whatever answers a push, over a real connection: a success is what the contract says, else it is an error of ours."""

import json
from collections.abc import Iterator
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from certjob.errors import PermanentPortalError, PortalCallError, PortalStageError, TransientPortalError
from tests.support.portal_answers import raw
from tests.support.portal_client import PortalClient
from tests.support.portal_server import PortalServer

CONTACT_ID = UUID("0b6c4f3e-9d1a-4c57-8f2e-a1b2c3d4e5f6")
KEY = "planted-portal-key"

contacts = st.sampled_from([str(CONTACT_ID), str(CONTACT_ID).upper(), str(CONTACT_ID)[:-1], "", None, 7])
values = st.sampled_from([False, True, 0, "false", None])
echoes = st.fixed_dictionaries({"contact_id": contacts, "visible": values}, optional={"error": st.none()})
codes = st.sampled_from(["contact_not_found", "invalid_request", "dynamics_rejected", "misconfigured", "new", "X-1"])
messages = st.text() | st.just(KEY) | st.integers()
envelopes = st.builds(lambda code, message: {"error": {"code": code, "message": message}}, codes, messages)
others: st.SearchStrategy[object] = (
    st.none() | st.lists(st.floats() | st.text(max_size=5), max_size=3) | st.just({"error": {}})
)
bodies = (echoes | envelopes | others).map(lambda content: json.dumps(content).encode()) | st.binary(max_size=50)
header_values = st.binary(max_size=20).map(lambda value: bytes(byte for byte in value if byte >= 0x20 and byte != 0x7F))
headers = st.dictionaries(
    st.sampled_from([b"Retry-After", b"X-Correlation-Id", b"Date", b"Location", b"Content-Encoding", b"Content-Type"]),
    header_values | st.sampled_from([b"1" * 400, b"-1", b"gzip", b"Tue, 99 Foo 10000 02:00:00 GMT", KEY.encode()]),
)
statuses = st.sampled_from([200, 200, 200, 201, 204, 301, 400, 404, 422, 429, 503]) | st.integers(100, 999)


def wire(status: int, fields: dict[bytes, bytes], body: bytes) -> bytes:
    """The bytes of an answer that says its length."""
    lines = [b"HTTP/1.1 %d Status" % status, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, *(b"%s: %s" % field for field in fields.items())]) + b"\r\n\r\n" + body


whole = st.builds(wire, statuses, headers, bodies)
part = st.builds(lambda answer, cut: answer[: cut % (len(answer) + 1)], whole, st.integers(0, 400))
answers = whole | whole | part | st.binary(max_size=80).map(lambda rest: b"HTTP/1.1 " + rest) | st.binary(max_size=80)


@pytest.fixture(scope="module")
def portal() -> Iterator[PortalServer]:
    with PortalServer(key=KEY) as server:
        yield server


def push(portal: PortalServer, answer: bytes) -> PortalCallError | None:
    """Push a hide to a server that answers with these bytes and closes; return the error."""
    portal.requests.clear()  # a failing example shows the server, too
    portal.then(raw(answer))
    with PortalClient(portal.url, KEY, deadline_seconds=5) as service:
        try:
            service.update_portal_visibility(CONTACT_ID, visible=False, idempotency_key="4711-2")
        except PortalCallError as error:
            return error
    return None


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answer=answers)
@example(answer=wire(200, {}, json.dumps({"contact_id": str(CONTACT_ID).upper(), "visible": False}).encode()))
@example(answer=wire(422, {b"Retry-After": b"9"}, b'{"error": {"code": "dynamics_rejected", "message": "\\ud800"}}'))
@example(answer=wire(429, {b"Retry-After": b"9" * 5000}, b""))
def test_only_the_contracts_answer_is_a_success(portal: PortalServer, answer: bytes) -> None:
    """Every other one, or no HTTP at all, is an error of ours, fit for a log: one short line without the key."""
    error = push(portal, answer)

    head, _, body = answer.partition(b"\r\n\r\n")
    is_echo = body.lower() == json.dumps({"contact_id": str(CONTACT_ID), "visible": False}).encode()
    if error is None or (is_echo and head.startswith(b"HTTP/1.1 200 ")):
        content = json.loads(body)
        assert error is None
        assert head.startswith(b"HTTP/1.1 200 ")
        assert (UUID(content["contact_id"]), content["visible"], "error" in content) == (CONTACT_ID, False, False)
        return
    assert type(error) in (PermanentPortalError, PortalStageError, TransientPortalError)
    assert type(error) is not PermanentPortalError or error.status in range(400, 500)
    said = f"{error} {error.correlation_id}"
    assert said.isprintable()
    assert len(said) < 700
    assert KEY not in said
    assert error.retry_after_seconds is None or 0 <= error.retry_after_seconds <= 86_400
