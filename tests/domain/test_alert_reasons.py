"""Why something waits: every code has its reason, every reason its words in three languages."""

import re
from dataclasses import replace

import pytest

from certjob.domain.alert_reasons import AlertReason, PushState, why_message_waits, why_push_waits
from certjob.errors import FailureCode

TRIED = PushState(
    status="pending",
    rounds=1,
    failure_kind="transient",
    code=FailureCode.PORTAL_FAILED,
    is_claimed=False,
    has_contact_id=True,
    has_new_contact_id=False,
)
UNTRIED = replace(TRIED, rounds=0, failure_kind=None, code=None)


def test_every_code_has_a_reason_and_every_reason_words_in_three_languages() -> None:
    """A whole sentence each, and advice with nothing left to fill in."""
    assert all(why_message_waits(code) in AlertReason for code in FailureCode)
    for reason in AlertReason:
        sentences = {reason.for_mail(language) for language in ("nb", "nn", "en")}
        advice = reason.advise(resync="`certjob resync M1`", next_try="at 03:15", message="digest")
        assert all(re.fullmatch(r"(certjob |[A-ZÆØÅ]).*\.", sentence) for sentence in sentences), sentences
        assert "{" not in advice


@pytest.mark.parametrize(
    ("push", "reason"),
    [
        (replace(TRIED, is_claimed=True), AlertReason.IN_WORK),
        (replace(TRIED, has_contact_id=False), AlertReason.NO_CONTACT_ID),
        (replace(UNTRIED, has_new_contact_id=True), AlertReason.NEW_CONTACT_ID),
        (replace(TRIED, has_new_contact_id=True), AlertReason.NO_ANSWER),
        (UNTRIED, AlertReason.UNTRIED),
        (TRIED, AlertReason.NO_ANSWER),
        (replace(TRIED, failure_kind=None), AlertReason.NO_ANSWER),
        (replace(TRIED, rounds=0), AlertReason.REOPENED),
        (replace(TRIED, rounds=0, failure_kind="permanent", code=FailureCode.CONTACT_NOT_FOUND), AlertReason.REOPENED),
        (
            replace(TRIED, status="blocked", failure_kind="permanent", code=FailureCode.CONTACT_NOT_FOUND),
            AlertReason.CONTACT_NOT_FOUND,
        ),
        (
            replace(TRIED, status="blocked", failure_kind="permanent", code=FailureCode.INVALID_REQUEST),
            AlertReason.CHANGE_REFUSED,
        ),
        (replace(UNTRIED, failure_kind="stage", code=FailureCode.BREAKER), AlertReason.OUTAGE),
        (replace(UNTRIED, failure_kind="stage", code=FailureCode.DEADLINE), AlertReason.OUT_OF_TIME),
        (replace(UNTRIED, failure_kind="stage", code=FailureCode.PORTAL_KEY_REFUSED), AlertReason.OPERATOR),
        (replace(UNTRIED, failure_kind="stage", code=FailureCode.NO_URL), AlertReason.OPERATOR),
        (replace(UNTRIED, code=FailureCode.PORTAL_KEY_REFUSED), AlertReason.OPERATOR),
    ],
)
def test_why_a_push_waits(push: PushState, reason: AlertReason) -> None:
    """The first that holds: what is going on, then what the app lacks, then what went wrong."""
    assert why_push_waits(push) is reason


@pytest.mark.parametrize("code", [None, "a code of a newer certjob"])
def test_an_unknown_code_is_no_reason_to_say_nothing(code: str | None) -> None:
    """The state of the push says what it can, and the technical reason stands beside it."""
    blocked = replace(TRIED, status="blocked", failure_kind="permanent", code=code)
    stopped = replace(UNTRIED, failure_kind="stage", code=code)

    assert why_push_waits(blocked) is AlertReason.CHANGE_REFUSED
    assert why_push_waits(stopped) is AlertReason.OPERATOR
    assert why_push_waits(replace(TRIED, code=code)) is AlertReason.NO_ANSWER
    assert why_message_waits(code) is AlertReason.MESSAGE_REFUSED
    assert AlertReason.MESSAGE_REFUSED.technical("something unforeseen") == "something unforeseen"


def test_of_a_servers_answer_its_own_words_are_shown() -> None:
    """Where the reason says it all, nothing."""
    error = "the mail server refused the recipient (550 5.1.1 <recipient> unknown (mailbox))"

    assert AlertReason.ADDRESS_REFUSED.technical(error) == "550 5.1.1 <recipient> unknown (mailbox)"
    assert AlertReason.CONTACT_NOT_FOUND.technical("the portal answered 404 x") == "the portal answered 404 x"
    assert AlertReason.NO_ADDRESS.technical("no address") == ""
