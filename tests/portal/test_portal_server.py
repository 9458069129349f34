"""The stand-in of the portal can be trusted with what other tests prove by it."""

import threading
from collections.abc import Iterator
from uuid import UUID, uuid4

import httpx
import pytest

from tests.support.portal_answers import delay, error, hang, ok, reset
from tests.support.portal_server import PortalServer

CONTACT_ID = uuid4()


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """The server under test."""
    with PortalServer() as server:
        yield server


def push(portal: PortalServer, contact_id: UUID = CONTACT_ID, *, visible: bool = False, timeout: float = 10) -> int:
    """Call as certjob does, on a connection of its own; return the status, 0 if there was no answer."""
    headers = {"Authorization": f"Bearer {portal.key}", "Idempotency-Key": "1-1"}
    try:
        return httpx.post(
            portal.url,
            headers=headers,
            json={"contact_id": str(contact_id), "visible": visible},
            timeout=timeout,
            trust_env=False,
        ).status_code
    except httpx.TransportError:
        return 0


def test_the_script_is_played_in_order_and_then_the_default(portal: PortalServer) -> None:
    """And a wrong key takes nothing from it."""
    portal.then(error(503, "token_unavailable"), reset(), ok())
    assert httpx.post(portal.url, json={}, trust_env=False).status_code == 401

    assert [push(portal) for _ in range(4)] == [503, 0, 200, 200]
    assert [request.authorized for request in portal.requests] == [False, True, True, True, True]
    assert [request.number for request in portal.requests] == [1, 2, 3, 4, 5]


def test_the_script_may_be_a_function_of_the_request() -> None:
    """One contact fails, the others do not."""
    script = lambda request: error(404, "contact_not_found") if request.contact_id == CONTACT_ID else ok()  # noqa: E731
    with PortalServer(script) as portal:
        assert push(portal) == 404
        assert push(portal, uuid4()) == 200


def test_only_what_was_done_is_visible(portal: PortalServer) -> None:
    """An effect may happen though the answer is lost."""
    portal.then(reset(), reset(applied=True))

    push(portal)
    assert portal.visible == {}

    push(portal)
    assert portal.visible == {CONTACT_ID: False}


def test_two_open_calls_for_one_contact_are_an_overlap(portal: PortalServer) -> None:
    """Calls for two contacts are none."""
    portal.then(hang(ok()), ok(), ok())
    first = threading.Thread(target=push, args=(portal,))
    first.start()
    portal.wait_until(lambda: len(portal.requests) == 1)

    push(portal, uuid4())
    assert portal.overlaps == []
    push(portal, visible=True)

    portal.release()
    first.join(10)
    assert [(early.number, late.number) for early, late in portal.overlaps] == [(1, 3)]
    assert portal.peak_in_flight == 2


def test_a_call_that_was_given_up_overlaps_nothing(portal: PortalServer) -> None:
    """Nor does one that has its answer, however soon the next comes in."""
    portal.then(hang())
    assert push(portal, timeout=0.05) == 0

    for _ in range(50):
        push(portal)

    assert portal.overlaps == []
    assert portal.peak_in_flight == 1


def test_the_server_can_go_and_come_back(portal: PortalServer) -> None:
    """At the same address, with everything it knew."""
    with PortalServer([delay(0.01)]) as coming_and_going:
        assert push(coming_and_going) == 200
    assert push(coming_and_going) == 0
    with coming_and_going:
        assert push(coming_and_going) == 200

    assert len(coming_and_going.requests_for(CONTACT_ID)) == 2
