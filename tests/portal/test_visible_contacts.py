"""Reading what the portal shows: all pages or an error, never a part that is taken for the whole."""

import dataclasses
import json
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest

from certjob.errors import PermanentPortalError, PortalCallError, PortalStageError, TransientPortalError
from certjob.portal import hlf_dynamics
from tests.support.nights import quick_policy
from tests.support.portal_answers import Behaviour, answer, cut, drip, error, html, ok, redirect
from tests.support.portal_client import PortalClient
from tests.support.portal_server import PortalServer

CONTACT = "0b6c4f3e-9d1a-4c57-8f2e-a1b2c3d4e5f6"
SEVERAL_TRIES = dataclasses.replace(quick_policy(), deadline_seconds=20)


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """The stand-in of the Edge Function, with seven contacts that are visible and one that is not."""
    with PortalServer(default=ok(page_size=3), visible={uuid4(): True for _ in range(7)}) as server:
        server.visible[uuid4()] = False
        yield server


@pytest.fixture
def client(portal: PortalServer) -> Iterator[PortalClient]:
    """A programme may put a query into CERTJOB_PORTAL_URL, for its gateway."""
    with PortalClient(f"{portal.url}?region=eu", portal.key) as client:
        yield client


def failure(client: PortalClient) -> PortalCallError:
    with pytest.raises(PortalCallError) as raised:
        client.read_visible_contacts()
    return raised.value


def test_all_pages_are_all_that_is_visible(portal: PortalServer, client: PortalClient) -> None:
    """Page by page, with the key and the cursor of the page before; an empty page is a page."""
    pages = client.read_visible_contacts()

    assert [len(page) for page in pages] == [3, 3, 1]
    shown = sorted(each for each, is_shown in portal.visible.items() if is_shown)
    assert sorted(each for page in pages for each in page) == shown
    assert [request.method for request in portal.requests] == ["GET"] * 3
    assert portal.requests[0].path == "/functions/v1/hlf-dynamics-sync?region=eu&visible=true"
    assert portal.requests[1].path.endswith(f"?region=eu&visible=true&after={pages[0][-1].hex}")
    assert all(request.authorized for request in portal.requests)
    portal.visible.clear()
    assert client.read_visible_contacts() == [[]]


def test_a_full_page_of_5000_is_read(portal: PortalServer, client: PortalClient) -> None:
    """A UUID's letters may be in either case."""
    contacts = [uuid4() for _ in range(5000)]
    portal.default = answer(200, {"visible": [str(each).upper() for each in contacts], "next": None})

    assert client.read_visible_contacts() == [contacts]


@pytest.mark.parametrize("fault", [error(429, "throttled", retry_after="0"), cut(), html()])
def test_a_page_that_fails_once_is_read_again(portal: PortalServer, client: PortalClient, fault: Behaviour) -> None:
    """Nothing is lost and nothing read twice."""
    portal.then(ok(page_size=3), fault)

    pages = client.read_visible_contacts(policy=SEVERAL_TRIES)

    assert [len(page) for page in pages] == [3, 3, 1]
    assert len(portal.requests) == 4


def test_a_page_that_fails_for_good_ends_the_reading(portal: PortalServer, client: PortalClient) -> None:
    """What was read until then is no answer."""
    portal.then(ok(page_size=3))
    portal.default = error(502, "dynamics_unavailable")

    with pytest.raises(TransientPortalError, match="502 dynamics_unavailable"):
        client.read_visible_contacts(policy=SEVERAL_TRIES)

    assert len(portal.requests) == 4


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        (error(500, "misconfigured", message="no column"), PortalStageError, "no column"),
        (error(400, "invalid_request"), PermanentPortalError, "invalid_request"),
        (redirect("http://127.0.0.1:1/"), PortalStageError, "redirect"),
        (answer(200, {"ok": True}), PortalStageError, "too old to list contacts"),
        (answer(200, b"x" * 1_100_000), TransientPortalError, "not what the contract says"),
        (drip(part="body"), TransientPortalError, "within 0.5 s"),
    ],
)
def test_what_a_failure_means(
    portal: PortalServer, behaviour: Behaviour, kind: type[PortalCallError], words: str
) -> None:
    """As for a push; a function that does not list yet is to be deployed again."""
    portal.default = behaviour

    with PortalClient(portal.url, portal.key, deadline_seconds=0.5) as client:
        raised = failure(client)

    assert type(raised) is kind
    assert words in str(raised)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"visible": [CONTACT]},
        {"visible": [CONTACT], "next": 2},
        {"visible": [CONTACT], "next": ""},
        {"visible": [CONTACT], "next": "x" * 4097},
        {"visible": CONTACT, "next": None},
        {"visible": [CONTACT, None], "next": None},
        {"visible": [CONTACT, "4711"], "next": None},
        {"visible": [CONTACT], "next": None, "error": {"code": "throttled", "message": ""}},
        b'{"visible": [], "visible": ["%s"], "next": null}' % CONTACT.encode(),
    ],
)
def test_a_page_that_is_not_the_contract_is_none(portal: PortalServer, client: PortalClient, content: object) -> None:
    """Above all it is not an empty page: that would say that nobody is visible."""
    portal.default = answer(200, content)

    assert isinstance(failure(client), TransientPortalError)


def test_a_list_without_an_end_is_ended(
    portal: PortalServer, client: PortalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a cursor that comes again, the function would go round in a circle; or each page has a new one."""
    monkeypatch.setattr(hlf_dynamics, "MOST_PAGES", 10)
    portal.default = answer(200, {"visible": [CONTACT], "next": "abc"})
    raised = failure(client)
    assert isinstance(raised, PortalStageError)
    assert "does not end" in str(raised)
    assert len(portal.requests) == 2

    portal.decide = lambda request: answer(200, {"visible": [], "next": f"c{request.number}"})
    assert "does not end" in str(failure(client))
    assert len(portal.requests) == 2 + 11


def test_a_cursor_is_sent_as_it_was_received(portal: PortalServer, client: PortalClient) -> None:
    """The client does not look into it."""
    portal.then(answer(200, json.dumps({"visible": [CONTACT], "next": "a b&c=d/+%22é"}).encode()))
    portal.default = answer(200, {"visible": [], "next": None})

    assert client.read_visible_contacts() == [[UUID(CONTACT)], []]

    assert portal.requests[1].path.endswith("after=a+b%26c%3Dd%2F%2B%2522%C3%A9")
