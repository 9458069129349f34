"""The meaning of each answer of the Edge Function, against a real server on loopback."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
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
from certjob.outbox.retry import RetryPolicy
from certjob.portal import hlf_dynamics
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from tests.support.blocking import Blocking
from tests.support.nights import quick_policy
from tests.support.portal_answers import Behaviour, answer, cut, error, hang, html, ok, raw, reset
from tests.support.portal_server import PortalServer

CONTACT = "0b6c4f3e-9d1a-4c57-8f2e-a1b2c3d4e5f6"
CONTACT_ID = UUID(CONTACT)
UNTIL = date(2027, 3, 10)
HIDDEN: dict[str, object] = {"contact_id": CONTACT, "visible": False, "visible_until": None, "dates": True}
SHOWN = HIDDEN | {"visible": True, "visible_until": "2027-03-10"}
ECHO = json.dumps(HIDDEN).encode()
ONE_TRY = replace(quick_policy(), max_attempts=1)
SEVERAL_TRIES = replace(quick_policy(), deadline_seconds=20)


@pytest.fixture
def service(portal: PortalServer) -> Iterator[Blocking]:
    """The client under test, with the right key and a query in its URL, as a gateway may need."""
    with Blocking(HLFDynamicsSyncService(f"{portal.url}?region=eu", portal.key)) as service:
        yield service


def push(service: Blocking, *, visible: bool = False) -> None:
    visible_until = UNTIL if visible else None
    service.update_portal_visibility(CONTACT_ID, visible=visible, visible_until=visible_until, idempotency_key="4711-2")


def read(service: Blocking, *, policy: RetryPolicy = ONE_TRY) -> list[list[UUID]]:
    """Return the contacts of each page."""
    return [[*page.visible_until] for page in service.read_visible_contacts(policy=policy)]


def failure(service: Blocking, *, reading: bool = False) -> PortalCallError:
    with pytest.raises(PortalCallError) as raised:
        read(service) if reading else push(service)
    return raised.value


@pytest.mark.parametrize("visible", [True, False], ids=["show", "hide"])
def test_push_is_one_post_of_the_contract(visible: bool, portal: PortalServer, service: Blocking) -> None:
    push(service, visible=visible)

    (request,) = portal.requests
    assert (request.method, request.path) == ("POST", "/functions/v1/hlf-dynamics-sync?region=eu")
    expected = {"authorization": f"Bearer {portal.key}", "idempotency-key": "4711-2"}
    expected |= {"content-type": "application/json", "user-agent": f"certjob/{__version__}"}
    assert expected.items() <= dict(request.headers).items()
    day = "2027-03-10" if visible else None
    assert request.json == {"contact_id": CONTACT, "visible": visible, "visible_until": day}
    assert portal.visible == {CONTACT_ID: visible}


def test_call_without_an_answer_names_the_reason(portal: PortalServer, port_of_nobody: int) -> None:
    """The server rejects the connection, or does not answer, or the deadline passes before the connection."""
    portal.then(hang())
    for url, deadline_seconds, said in (
        (f"http://127.0.0.1:{port_of_nobody}/", 30, "no connection to the portal: Connection refused"),
        (portal.url, 0.2, "no complete answer from the portal within 0.2 s"),
        (portal.url, 0, "no connection to the portal within 0 s"),
    ):
        with Blocking(HLFDynamicsSyncService(url, portal.key, deadline_seconds=deadline_seconds)) as service:
            error = failure(service)
        assert (type(error), str(error)) == (TransientPortalError, said)


def page(*shown: str, **others: object) -> dict[str, object]:
    """Return the document of a page."""
    contacts = [{"contact_id": each, "visible_until": None} for each in shown]
    return {"contacts": contacts, "next": None, "dates": True} | others


@dataclass(frozen=True, kw_only=True)
class Case:
    """An answer that is a failure."""

    answer: Behaviour
    kind: type[PortalCallError] = TransientPortalError
    says: str = ""


permanent, stage = partial(Case, kind=PermanentPortalError), partial(Case, kind=PortalStageError)
KEY, SECRETS = "; check CERTJOB_PORTAL_KEY", "; check the function's secrets"
ADDRESS = "; check that CERTJOB_PORTAL_URL is the function's address"
DEPLOYED = "; check CERTJOB_PORTAL_URL and that the function is deployed"
REDIRECT = "a redirect; CERTJOB_PORTAL_URL must be"
OUTDATED = "the portal's function is too old for this certjob; deploy it again (docs/edge-function.md)"

CASES = {
    "0_for_false": Case(answer=answer(200, HIDDEN | {"visible": 0})),
    "other_contact": Case(answer=answer(200, HIDDEN | {"contact_id": "11111111-2222-3333-4444-555555555555"})),
    "success_with_an_error": Case(answer=answer(200, ECHO[:-1] + b', "error": {"code": "x"}}')),
    "too_long": Case(answer=answer(200, ECHO[:-1] + b" " * 100_000 + b"}")),
    "202": Case(answer=answer(202, ECHO)),
    "500_with_a_code_about_the_contact": Case(answer=error(500, "contact_not_found")),
    "reset": Case(answer=reset()),
    "answer_cut_off": Case(answer=cut()),
    "not_http": Case(answer=raw(b"220 mail.example ESMTP\r\n"), says="does not speak HTTP"),  # bytes are not quoted
    "other_value_stored": Case(answer=answer(200, SHOWN)),
    "other_day_stored": Case(answer=answer(200, HIDDEN | {"visible_until": "2027-03-10"})),
    "408_with_a_code_about_the_contact": Case(answer=error(408, "contact_not_found")),
    "429": Case(answer=error(429, "throttled")),
    "unknown_code_in_our_format": Case(answer=error(409, "contact_locked")),
    "page_without_next": Case(answer=answer(200, {"contacts": []})),
    "page_with_an_empty_cursor": Case(answer=answer(200, page(CONTACT, next=""))),
    "page_with_an_invalid_contact": Case(answer=answer(200, page(CONTACT, "4711"))),
    "page_that_is_too_long": Case(answer=answer(200, b" " * 1_100_000 + json.dumps(page(CONTACT)).encode())),
    "contact_not_found": permanent(answer=error(404, "contact_not_found", message="Look."), says="(Look.)"),
    "invalid_request": permanent(answer=error(400, "invalid_request", retry_after="9"), says="400 invalid_request"),
    "dynamics_rejected": permanent(answer=error(422, "dynamics_rejected"), says="422 dynamics_rejected"),
    "401": stage(answer=error(401, "unauthorized", retry_after="9"), says=KEY),
    "403": stage(answer=error(403, "contact_not_found"), says=KEY),
    "401_of_supabase": stage(answer=answer(401, {"code": 401, "message": "Invalid JWT"}), says="verify_jwt"),
    "405": stage(answer=error(405, "method_not_allowed"), says=ADDRESS),
    "413": stage(answer=html(413), says=ADDRESS),
    "500_misconfigured": stage(answer=error(500, "misconfigured"), says=SECRETS),
    # httpx cannot parse this address
    "302_to_a_long_path": stage(answer=answer(302, headers={"Location": "/" + "a" * 65_000}), says=REDIRECT),
    "404_page": stage(answer=answer(404, b"x" * 200_000), says=DEPLOYED),
    "404_code_of_a_gateway": stage(answer=error(404, "ResourceNotFound"), says=DEPLOYED),
    "outdated_push": stage(answer=answer(200, {"contact_id": CONTACT, "visible": False}), says=OUTDATED),
    "outdated_page": stage(answer=answer(200, {"visible": [CONTACT], "next": None}), says=OUTDATED),
    "outdated_ready": stage(answer=answer(200, {"ok": True}), says=OUTDATED),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_failed_call_is_transient_permanent_or_ends_the_stage(
    case: Case, portal: PortalServer, service: Blocking
) -> None:
    """A push and a page fail alike, after one call. An invalid page is not an empty one: no one would be visible."""
    portal.default = case.answer

    for raised in (failure(service), failure(service, reading=True)):
        assert type(raised) is case.kind
        assert case.says in str(raised)
        assert raised.retry_after_seconds is None
    assert len(portal.requests) == 2


def test_redirect_is_not_followed(portal: PortalServer, service: Blocking) -> None:
    """The other server would get the key."""
    with PortalServer() as elsewhere:
        portal.then(answer(307, headers={"Location": elsewhere.url}))

        failure(service)

    assert elsewhere.requests == []


def test_error_is_short_printable_and_without_the_key(portal: PortalServer, service: Blocking) -> None:
    """It quotes the message of our envelope, and no other body."""
    portal.then(
        error(422, "dynamics_rejected", message=f"no\x00\x1b[2J\n\u202e{portal.key} " + "y" * 900),
        answer(500, b"secret page " + portal.key.encode()),
    )

    text, gateway = str(failure(service)), str(failure(service))

    assert text.startswith("the portal answered 422 dynamics_rejected (no [2J <secret> yyy")
    assert text.isprintable()
    assert len(text) < 260
    assert gateway == "the portal answered 500 Internal Server Error"


def test_error_has_the_correlation_id_and_retry_after(portal: PortalServer, service: Blocking) -> None:
    """The correlation ID finds the line in the function's log. A long one is cut, and the key is never shown."""
    sent = ["abc-1", "x" * 500, "", portal.key]
    portal.then(*(answer(503, headers={"X-Correlation-Id": each, "Retry-After": "17"}) for each in sent))

    errors = [failure(service) for _ in sent]

    assert [each.correlation_id for each in errors] == ["abc-1", "x" * 199 + "…", None, "<secret>"]
    assert [each.retry_after_seconds for each in errors] == [17] * 4


def test_invalid_url_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigurationError, match="CERTJOB_PORTAL_URL"):
        HLFDynamicsSyncService("https://portal.example:port/", "planted-key")


@pytest.fixture
def shown(portal: PortalServer) -> list[UUID]:
    """Seven visible contacts in pages of three. An eighth is hidden."""
    contacts = sorted(uuid4() for _ in range(7))
    portal.visible = dict.fromkeys(contacts, True) | {uuid4(): False}
    portal.default = ok(page_size=3)
    return contacts


def test_pages_together_have_all_visible_contacts(portal: PortalServer, service: Blocking, shown: list[UUID]) -> None:
    """Each request has the cursor of the page before."""
    assert read(service) == [shown[:3], shown[3:6], shown[6:]]

    first, second, _ = portal.requests
    assert (first.method, first.path) == ("GET", "/functions/v1/hlf-dynamics-sync?region=eu&visible=true")
    assert second.path == f"{first.path}&after={shown[2].hex}"


@pytest.mark.parametrize("number", [0, 5000])
def test_page_has_up_to_5000_contacts(number: int, portal: PortalServer, service: Blocking) -> None:
    contacts = [uuid4() for _ in range(number)]
    portal.then(answer(200, page(*map(str, contacts))))

    assert read(service) == [contacts]


def test_pages_have_the_last_day_of_each_contact(portal: PortalServer, service: Blocking, shown: list[UUID]) -> None:
    """It is None if the column is empty, or if there is no column."""
    portal.until = {shown[0]: "2027-03-10"}
    first, *_ = service.read_visible_contacts(policy=ONE_TRY)
    assert (first.dates, first.visible_until) == (True, {shown[0]: UNTIL, shown[1]: None, shown[2]: None})

    portal.until = None
    first, *_ = service.read_visible_contacts(policy=ONE_TRY)
    assert (first.dates, set(first.visible_until.values())) == (False, {None})


def test_failed_page_is_read_again(portal: PortalServer, service: Blocking, shown: list[UUID]) -> None:
    """A page that always fails is an error: its list would be incomplete."""
    portal.then(ok(page_size=3), cut(), ok(page_size=3), html())
    assert read(service, policy=SEVERAL_TRIES) == [shown[:3], shown[3:6], shown[6:]]

    portal.then(ok(page_size=3), cut(), cut(), cut())
    with pytest.raises(TransientPortalError):
        read(service, policy=SEVERAL_TRIES)


@pytest.mark.parametrize("cursors", ["abc", ""], ids=["same_cursor", "too_many_pages"])
def test_list_without_an_end_is_an_error(
    cursors: str, portal: PortalServer, service: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hlf_dynamics, "MOST_PAGES", 10)
    portal.decide = lambda request: answer(200, page(next=cursors or str(request.number)))

    raised = failure(service, reading=True)

    assert isinstance(raised, PortalStageError)
    assert "does not end" in str(raised)
    assert len(portal.requests) == (2 if cursors else 11)
