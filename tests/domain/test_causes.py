"""Why something is not delivered: each cause has its advice, and the first that applies is chosen."""

from typing import Any

import pytest

from certjob.domain.causes import NEVER_TRIED, PushState, advise_on_message, advise_on_push
from certjob.errors import Cause, StageEnd
from certjob.mail.messages.samples import SAMPLES
from certjob.mail.messages.templates import OUR_TEMPLATES


def push(rounds: int, **state: Any) -> PushState:
    """A push that was tried this often; nothing has failed."""
    calm: dict[str, Any] = {"is_claimed": False, "has_contact_id": True, "has_new_contact_id": False}
    calm |= {"status": "pending", "rounds": rounds, "failure_kind": None, "code": None}
    return PushState(**calm | state)


def failed(code: str | None, kind: str = "permanent", status: str = "blocked", rounds: int = 1) -> PushState:
    return push(rounds, status=status, failure_kind=kind, code=code)


def stage_ended(code: str | None) -> PushState:
    return failed(code, "stage", "pending", rounds=0)


@pytest.mark.parametrize("cause", Cause)
def test_each_cause_has_its_advice(cause: Cause) -> None:
    """A sentence and an action, with nothing left to fill in."""
    advice = advise_on_message(cause)
    action = advice.advise(resync="`certjob resync M1`", next_try="at 03:15", message="digest")
    assert advice.cause is cause
    assert advice.why.endswith(".")
    assert action.endswith((".", "`."))
    assert "{" not in action
    assert ("at 03:15" in action) == advice.is_tried_automatically


@pytest.mark.parametrize("language", ["nb", "nn", "en"])
def test_a_digest_has_a_sentence_for_each_cause(language: str) -> None:
    """In each language, in the text and on the page."""
    words = dict(next(iter(SAMPLES["digest"](language))))
    pages = set()
    for cause in Cause:
        words["visible"] = [{"name": "Kari", "member_no": "M1", "since": "today", "sentence": "", "cause": cause}]
        pages.add(OUR_TEMPLATES.try_out("digest", slug="", words=words).html)
    assert len(pages) == len(Cause)


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        pytest.param(push(1, is_claimed=True), Cause.QUEUED, id="a run works on it"),
        pytest.param(push(1, has_contact_id=False), Cause.NO_CONTACT_ID, id="no contact ID"),
        pytest.param(push(0, has_new_contact_id=True), Cause.QUEUED, id="a new contact ID"),
        pytest.param(push(1, has_new_contact_id=True, failure_kind="transient"), Cause.PORTAL_DOWN, id="tried again"),
        pytest.param(push(0), Cause.PORTAL_STOPPED, id="never tried"),
        pytest.param(push(1, code=Cause.PORTAL_DOWN), Cause.PORTAL_DOWN, id="the portal is down"),
        pytest.param(failed(Cause.PORTAL_DOWN, "transient", "pending", rounds=0), Cause.QUEUED, id="reopened"),
        pytest.param(failed(Cause.CONTACT_NOT_FOUND, status="pending", rounds=0), Cause.QUEUED, id="corrected"),
        pytest.param(failed(Cause.CONTACT_NOT_FOUND), Cause.CONTACT_NOT_FOUND, id="no such contact"),
        pytest.param(stage_ended(StageEnd.BREAKER.cause), Cause.PORTAL_DOWN, id="an outage"),
        pytest.param(stage_ended(StageEnd.DEADLINE.cause), Cause.QUEUED, id="out of time"),
        pytest.param(stage_ended(StageEnd.KEY_REFUSED.cause), Cause.PORTAL_STOPPED, id="the key"),
        pytest.param(push(0, code=Cause.PORTAL_STOPPED), Cause.PORTAL_STOPPED, id="a show after the key was refused"),
    ],
)
def test_an_open_push_has_the_first_cause_that_applies(state: PushState, cause: Cause) -> None:
    """First what is going on, then what the app lacks, then what went wrong."""
    assert advise_on_push(state).cause is cause


def test_a_push_that_no_delivery_reached_has_its_own_advice() -> None:
    """Nothing is wrong with the portal: cron is."""
    assert advise_on_push(push(0)) is NEVER_TRIED


@pytest.mark.parametrize("code", [None, "a cause of a newer certjob"])
def test_an_unknown_cause_goes_by_the_kind_of_failure(code: str | None) -> None:
    """There is always something to do."""
    assert advise_on_push(failed(code)).cause is Cause.CHANGE_REFUSED
    assert advise_on_push(stage_ended(code)).cause is Cause.PORTAL_STOPPED
    assert advise_on_push(failed(code, "transient", "pending")).cause is Cause.PORTAL_DOWN
    assert advise_on_message(code).cause is Cause.MAIL_STOPPED
