"""The stand-in of the portal can be trusted with what other tests prove by it."""

import threading
from uuid import UUID, uuid4

import httpx

from tests.support.portal_answers import error, hang, ok, reset
from tests.support.portal_server import PortalServer

CONTACT_ID = uuid4()


def push(portal: PortalServer, contact_id: UUID = CONTACT_ID, *, visible: bool = False, timeout: float = 10) -> int:
    """Call as certjob does, on a connection of its own; return the status, 0 if there was no answer."""
    headers = {"Authorization": f"Bearer {portal.key}", "Idempotency-Key": "1-1"}
    body = {"contact_id": str(contact_id), "visible": visible}
    try:
        return httpx.post(portal.url, headers=headers, json=body, timeout=timeout, trust_env=False).status_code
    except httpx.TransportError:
        return 0


def test_the_script_is_played_in_order_and_then_the_default(portal: PortalServer) -> None:
    """A wrong key takes nothing from it; an effect may happen though the answer is lost."""
    portal.then(error(503, "token_unavailable"), reset(), reset(applied=True))
    assert httpx.post(portal.url, json={}, trust_env=False).status_code == 401

    assert [push(portal), push(portal)] == [503, 0]
    assert portal.visible == {}
    assert [push(portal), push(portal, visible=True)] == [0, 200]
    assert portal.visible == {CONTACT_ID: True}
    assert [request.authorized for request in portal.requests] == [False, True, True, True, True]


def test_only_two_open_calls_for_one_contact_are_an_overlap(portal: PortalServer) -> None:
    """Not calls for two contacts, and not a call whose caller has given up, or that has its answer."""
    portal.then(hang())
    assert push(portal, timeout=0.05) == 0
    for _ in range(20):
        push(portal)
    assert (portal.overlaps, portal.peak_in_flight) == ([], 1)

    portal.then(hang(ok()), ok(), ok())
    first = threading.Thread(target=push, args=(portal,))
    first.start()
    portal.wait_until(lambda: len(portal.requests) == 22)
    push(portal, uuid4())
    assert portal.overlaps == []
    push(portal, visible=True)
    portal.release()
    first.join(10)
    assert [(early.number, late.number) for early, late in portal.overlaps] == [(22, 24)]
    assert portal.peak_in_flight == 2
