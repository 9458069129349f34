"""What each outcome of a call to the Edge Function means, against a real server on loopback.

And reading what the portal shows: all pages or an error, never a part that is taken for the whole.
"""

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from datetime import date
from uuid import UUID, uuid4

import pytest

from certjob import __version__
from certjob.errors import (
    ConfigurationError,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    TransientPortalError,
)
from certjob.portal import hlf_dynamics
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService, VisiblePage
from tests.support.channels import Blocking
from tests.support.nights import quick_policy
from tests.support.portal_answers import Behaviour, answer, cut, drip, error, hang, html, ok, raw, reset
from tests.support.portal_server import PortalServer

CONTACT = "0b6c4f3e-9d1a-4c57-8f2e-a1b2c3d4e5f6"
CONTACT_ID = UUID(CONTACT)
UNTIL = date(2027, 3, 10)
HIDDEN: dict[str, object] = {"contact_id": CONTACT, "visible": False, "visible_until": None, "dates": True}
SHOWN = HIDDEN | {"visible": True, "visible_until": "2027-03-10"}
ECHO = json.dumps(HIDDEN).encode()
OTHER = "11111111-2222-3333-4444-555555555555"
ONE_TRY = quick_policy(max_attempts=1)
SEVERAL_TRIES = dataclasses.replace(quick_policy(), deadline_seconds=20)


@pytest.fixture
def service(portal: PortalServer) -> Iterator[Blocking]:
    """The client under test, with the right key; a programme may put a query into its URL, for its gateway."""
    with Blocking(HLFDynamicsSyncService(f"{portal.url}?region=eu", portal.key)) as service:
        yield service


def push(service: Blocking, *, visible: bool = False) -> None:
    visible_until = UNTIL if visible else None
    service.update_portal_visibility(CONTACT_ID, visible=visible, visible_until=visible_until, idempotency_key="4711-2")


def failure(service: Blocking, *, reading: bool = False) -> PortalCallError:
    with pytest.raises(PortalCallError) as raised:
        service.read_visible_contacts(policy=ONE_TRY) if reading else push(service)
    return raised.value


@pytest.mark.parametrize("visible", [True, False])
def test_a_push_is_one_post_as_the_contract_says(visible: bool, portal: PortalServer, service: Blocking) -> None:
    push(service, visible=visible)

    (request,) = portal.requests
    assert (request.method, request.path) == ("POST", "/functions/v1/hlf-dynamics-sync?region=eu")
    expected = {"authorization": f"Bearer {portal.key}", "idempotency-key": "4711-2"}
    expected |= {"content-type": "application/json", "user-agent": f"certjob/{__version__}"}
    assert expected.items() <= dict(request.headers).items()
    day = "2027-03-10" if visible else None
    assert request.json == {"contact_id": CONTACT, "visible": visible, "visible_until": day}
    assert portal.visible == {CONTACT_ID: visible}


@pytest.mark.parametrize("dates", [True, False])
def test_push_needs_the_stored_day_only_if_the_portal_has_dates(
    dates: bool, portal: PortalServer, service: Blocking
) -> None:
    """A portal without the column answers null."""
    portal.then(answer(200, SHOWN | {"visible_until": None, "dates": dates}))

    if dates:
        with pytest.raises(TransientPortalError, match="stored another value"):
            push(service, visible=True)
    else:
        push(service, visible=True)


@pytest.mark.parametrize(
    "content",
    [{"contact_id": CONTACT, "visible": False}, {"visible": [CONTACT], "next": None}, {"ok": True}],
    ids=["push", "page", "ready"],
)
def test_outdated_function_ends_the_stage_with_the_next_step(
    content: object, portal: PortalServer, service: Blocking
) -> None:
    """An answer without `dates` comes from a function that does not know the last visible day."""
    portal.default = answer(200, content)

    for reading in (False, True):
        raised = failure(service, reading=reading)

        assert isinstance(raised, PortalStageError)
        assert (raised.message, raised.next_step) == (
            "the portal's function is too old for this certjob",
            "deploy it again (docs/edge-function.md)",
        )


TRANSIENT: dict[str, Behaviour] = {
    "0 for false": answer(200, HIDDEN | {"visible": 0}),
    "other contact": answer(200, HIDDEN | {"contact_id": OTHER}),
    "a day that is none": answer(200, SHOWN | {"visible_until": "2027-02-30"}),
    "invalid JSON": answer(200, b'{"contact_id": '),
    "an echo and an error": answer(200, ECHO[:-1] + b', "error": {"code": "x"}}'),
    "too long": answer(200, ECHO[:-1] + b" " * 100_000 + b"}"),
    "only accepted": answer(202, ECHO),
    "a gateway's page under 504": html(504),
    "a contact's code under 500": error(500, "contact_not_found"),
    "outcome_unknown": error(504, "outcome_unknown"),
    "reset": reset(),
    "cut answer": cut(),
    "no answer": hang(),
    "an answer without an end": drip(every_seconds=0.01),
    "no HTTP": raw(b"220 mail.example ESMTP\r\n"),
    "other value stored": answer(200, SHOWN),
    "other day stored": answer(200, HIDDEN | {"visible_until": "2027-03-10"}),
    "408 with a contact's code": error(408, "contact_not_found"),
    "425": html(425),
    "429": error(429, "throttled"),
    "502": error(502, "dynamics_unavailable"),
    "503": error(503, "token_unavailable"),
    "an unknown code of ours": error(409, "contact_locked"),
}


@pytest.mark.parametrize("case", TRANSIENT)
def test_whatever_may_pass_is_transient(case: str, portal: PortalServer) -> None:
    """The client makes one call; the policy decides about the next one."""
    portal.then(TRANSIENT[case])

    seconds = 0.6 if case in ("no answer", "an answer without an end") else 10
    with Blocking(HLFDynamicsSyncService(portal.url, portal.key, deadline_seconds=seconds)) as service:
        raised = failure(service)

    assert type(raised) is TransientPortalError
    assert len(portal.requests) == 1
    assert "220" not in str(raised)  # what is no HTTP is not quoted


def test_without_a_connection_nothing_was_sent(port_of_nobody: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's word for it, or by the deadline: a dead name server, here; a dead network looks the same."""
    with Blocking(HLFDynamicsSyncService(f"http://127.0.0.1:{port_of_nobody}/", "planted-key")) as service:
        refused = failure(service)
    resolved = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_arguments, **_options: resolved.wait(30) and [])
    with Blocking(HLFDynamicsSyncService("http://portal.example/", "planted-key", deadline_seconds=0.05)) as service:
        unanswered = failure(service)
    resolved.set()

    assert str(refused) == "no connection to the portal: Connection refused"
    assert str(unanswered) == "no connection to the portal within 0.05 s"
    assert {type(refused), type(unanswered)} == {TransientPortalError}


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        (error(404, "contact_not_found", message="Look.", retry_after="9"), PermanentPortalError, "not_found (Look.)"),
        (error(400, "invalid_request"), PermanentPortalError, "the portal answered 400 invalid_request"),
        (error(422, "dynamics_rejected"), PermanentPortalError, "the portal answered 422 dynamics_rejected"),
        (error(401, "unauthorized", retry_after="9"), PortalStageError, "; check CERTJOB_PORTAL_KEY"),
        (answer(401, {"code": 401, "message": "Invalid JWT"}), PortalStageError, "verify_jwt"),
        (error(403, "contact_not_found"), PortalStageError, "CERTJOB_PORTAL_KEY"),
        (error(405, "method_not_allowed"), PortalStageError, "CERTJOB_PORTAL_URL"),
        (html(413), PortalStageError, "is the function's address"),
        (error(500, "misconfigured"), PortalStageError, "secrets"),
        (error(400, "misconfigured"), PortalStageError, "secrets"),
        (answer(302, headers={"Location": "https://elsewhere.example/"}), PortalStageError, "redirect"),
        (answer(302, headers={"Location": "mailto:kari@example.org"}), PortalStageError, "redirect"),
        (answer(302, headers={"Location": "/" + "a" * 65_000}), PortalStageError, "redirect"),
        (answer(404, b"x" * 200_000), PortalStageError, "deployed"),
        (error(404, "ResourceNotFound"), PortalStageError, "deployed"),  # a gateway's code, in an envelope like ours
        (answer(404, {"error": {"code": 404}}), PortalStageError, "deployed"),
        (html(499), PortalStageError, "deployed"),  # a status without a name
    ],
)
def test_only_our_codes_about_the_contact_are_permanent_and_what_everybody_would_get_concerns_the_stage(
    behaviour: Behaviour, kind: type[PortalCallError], words: str, portal: PortalServer, service: Blocking
) -> None:
    """Nobody may be blocked for a wrong key or a failed deploy; the text says the next step. Reading fails alike."""
    portal.then(behaviour, behaviour)

    for raised in (failure(service), failure(service, reading=True)):
        assert type(raised) is kind
        assert words in str(raised)
        assert raised.retry_after_seconds is None


def test_pushes_share_a_connection_until_the_server_drops_it(portal: PortalServer, service: Blocking) -> None:
    """An answered failure does not cost a new one; a dropped one is no failure. Redirects are not followed."""
    with PortalServer() as elsewhere:
        redirect = answer(307, headers={"Location": elsewhere.url})
        portal.then(redirect, error(404, "contact_not_found"), ok(then_reset=True))
        failure(service)
        failure(service)
        push(service)
    assert (portal.connections_made, elsewhere.requests) == (1, [])
    portal.wait_until(lambda: not portal.connections)

    push(service, visible=True)

    assert portal.visible == {CONTACT_ID: True}


def test_an_error_is_short_and_clean_without_the_key_and_keeps_retry_after_and_correlation_id(
    portal: PortalServer, service: Blocking
) -> None:
    """A message may hold anything, a body that is no envelope is not quoted at all; both end up on a terminal."""
    sent = ["x" * 500, "før", "", portal.key]
    portal.then(
        error(422, "dynamics_rejected", message=f"no\x00\x1b[2J\n\u202e{portal.key} " + "y" * 900),
        answer(500, b"secret page " + portal.key.encode()),
        error(200, "throttled", message="\ud800", retry_after="17"),
        *(answer(503, headers={"X-Correlation-Id": each, "Retry-After": "17"}) for each in sent),
    )

    errors = [failure(service) for _ in range(7)]

    text = str(errors[0])
    assert text.startswith("the portal answered 422 dynamics_rejected (no [2J <secret> yyy")
    assert len(text) < 260
    assert str(errors[1]) == "the portal answered 500 Internal Server Error"
    assert all(str(each).isprintable() for each in errors)
    assert [each.retry_after_seconds for each in errors] == [None, None, *[17] * 5]
    ids = ["test-1", "test-2", "test-3", "x" * 199 + "…", "før", None, "<secret>"]
    assert [each.correlation_id for each in errors] == ids


def test_what_http_cannot_carry_is_a_wrong_setting() -> None:
    """Said at once, with the variable's name; a key that it cannot carry, the settings refuse."""
    with pytest.raises(ConfigurationError, match="CERTJOB_PORTAL_URL"):
        HLFDynamicsSyncService("https://portal.example:port/", "planted-key")


def page(*shown: str, **others: object) -> dict[str, object]:
    """Return the document of a page."""
    contacts = [{"contact_id": each, "visible_until": None} for each in shown]
    return {"contacts": contacts, "next": None, "dates": True} | others


def contacts(pages: list[VisiblePage]) -> list[list[UUID]]:
    """Return the contacts of each page."""
    return [[*page.visible_until] for page in pages]


class TestReading:
    """What the portal shows: seven contacts in pages of three; another one is hidden."""

    @pytest.fixture(autouse=True)
    def shown(self, portal: PortalServer) -> list[UUID]:
        contacts = sorted(uuid4() for _ in range(7))
        portal.visible = dict.fromkeys(contacts, True) | {uuid4(): False}
        portal.default = ok(page_size=3)
        return contacts

    def test_all_pages_are_all_that_is_visible(
        self, portal: PortalServer, service: Blocking, shown: list[UUID]
    ) -> None:
        """Page by page, with the key and the cursor of the page before; an empty page is a page, 5,000 are one."""
        assert contacts(service.read_visible_contacts(policy=ONE_TRY)) == [shown[:3], shown[3:6], shown[6:]]

        assert [request.method for request in portal.requests] == ["GET"] * 3
        paths = [request.path.removeprefix("/functions/v1/hlf-dynamics-sync") for request in portal.requests]
        assert paths[:2] == ["?region=eu&visible=true", f"?region=eu&visible=true&after={shown[2].hex}"]
        many = [uuid4() for _ in range(5000)]
        portal.then(answer(200, page(*(str(each).upper() for each in many))))
        assert contacts(service.read_visible_contacts(policy=ONE_TRY)) == [many]
        portal.visible.clear()
        assert contacts(service.read_visible_contacts(policy=ONE_TRY)) == [[]]

    def test_pages_have_the_day_of_each_contact(
        self, portal: PortalServer, service: Blocking, shown: list[UUID]
    ) -> None:
        """None where the column is empty; without the column there are no days at all."""
        portal.until = {shown[0]: "2027-03-10", shown[6]: "2099-12-31"}

        pages = service.read_visible_contacts(policy=ONE_TRY)

        assert [each.dates for each in pages] == [True] * 3
        assert pages[0].visible_until == {shown[0]: UNTIL, shown[1]: None, shown[2]: None}
        assert pages[2].visible_until == {shown[6]: date(2099, 12, 31)}
        portal.until = None
        first, *_ = service.read_visible_contacts(policy=ONE_TRY)
        assert (first.dates, set(first.visible_until.values())) == (False, {None})

    def test_a_page_that_fails_once_is_read_again_and_one_that_fails_for_good_ends_it(
        self, portal: PortalServer, service: Blocking, shown: list[UUID]
    ) -> None:
        """Nothing is lost and nothing read twice; what was read until a failure is no answer."""
        portal.then(ok(page_size=3), cut(), ok(page_size=3), html())
        assert contacts(service.read_visible_contacts(policy=SEVERAL_TRIES)) == [shown[:3], shown[3:6], shown[6:]]
        assert len(portal.requests) == 5

        portal.then(ok(page_size=3), error(429, "throttled", retry_after="0"), cut(), html())
        with pytest.raises(TransientPortalError):
            service.read_visible_contacts(policy=SEVERAL_TRIES)
        assert len(portal.requests) == 9

    def test_a_page_that_is_not_the_contract_is_none(self, portal: PortalServer, service: Blocking) -> None:
        """Above all it is not an empty page: that would say that nobody is visible."""
        contents: tuple[object, ...] = (
            {"contacts": []},
            page(CONTACT, next=2),
            page(CONTACT, next=""),
            page(CONTACT, next="x" * 4097),
            page(CONTACT, dates=None),
            page(CONTACT, contacts=[CONTACT]),
            page(CONTACT, contacts=[{"contact_id": CONTACT, "visible_until": "10.03.2027"}]),
            page(CONTACT, "4711"),
            page(CONTACT, error={"code": "throttled", "message": ""}),
            b"x" * 1_100_000,
        )
        for content in contents:
            portal.then(answer(200, content))
            assert isinstance(failure(service, reading=True), TransientPortalError), content

    def test_a_cursor_is_sent_as_it_was_received_and_a_list_without_an_end_is_ended(
        self, portal: PortalServer, service: Blocking, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a cursor that comes again, the function would go round in a circle; or each page has a new one."""
        portal.then(answer(200, page(CONTACT, next="a b&c=d/+%22é")))
        portal.default = answer(200, page())
        assert contacts(service.read_visible_contacts(policy=ONE_TRY)) == [[CONTACT_ID], []]
        assert portal.requests[1].path.endswith("after=a+b%26c%3Dd%2F%2B%2522%C3%A9")

        monkeypatch.setattr(hlf_dynamics, "MOST_PAGES", 10)
        for pages, next_of in ((2, lambda _number: "abc"), (11, str)):
            portal.requests.clear()
            portal.decide = lambda request, new=next_of: answer(200, page(next=new(request.number)))
            raised = failure(service, reading=True)
            assert isinstance(raised, PortalStageError)
            assert "does not end" in str(raised)
            assert len(portal.requests) == pages
