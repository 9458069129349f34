"""Why something waits: every code has its reason, every reason its words in three languages."""

import re
from typing import Any

from certjob.domain.alert_reasons import AlertReason, PushState, why_message_waits, why_push_waits
from certjob.errors import FailureCode


def push(rounds: int, **state: Any) -> PushState:
    """A push that was tried so often; nothing is known of a failure."""
    calm: dict[str, Any] = {"is_claimed": False, "has_contact_id": True, "has_new_contact_id": False}
    calm |= {"status": "pending", "rounds": rounds, "failure_kind": None, "code": None}
    return PushState(**calm | state)


def failed(code: str | None, kind: str = "permanent", status: str = "blocked", rounds: int = 1) -> PushState:
    return push(rounds, status=status, failure_kind=kind, code=code)


def test_every_code_has_a_reason_and_every_reason_words_in_three_languages() -> None:
    """A whole sentence each, and advice with nothing left to fill in."""
    assert all(why_message_waits(code) in AlertReason for code in FailureCode)
    for reason in AlertReason:
        sentences = {reason.for_mail(language) for language in ("nb", "nn", "en")}
        advice = reason.advise(resync="`certjob resync M1`", next_try="at 03:15", message="digest")
        assert all(re.fullmatch(r"(certjob |[A-ZÆØÅ]).*\.", sentence) for sentence in sentences), sentences
        assert ("{" in advice, "at 03:15" in advice) == (False, reason.is_tried_automatically)


def test_why_a_push_waits() -> None:
    """The first that holds: what is going on, then what the app lacks, then what went wrong.

    A code that is not known is no reason to say nothing: the technical reason stands beside it.
    """
    for state, reason in (
        (push(1, is_claimed=True), AlertReason.IN_WORK),
        (push(1, has_contact_id=False), AlertReason.NO_CONTACT_ID),
        (push(0, has_new_contact_id=True), AlertReason.NEW_CONTACT_ID),
        (push(1, has_new_contact_id=True, failure_kind="transient"), AlertReason.NO_ANSWER),
        (push(0), AlertReason.UNTRIED),
        (push(1, code=FailureCode.PORTAL_FAILED), AlertReason.NO_ANSWER),
        (failed(FailureCode.PORTAL_FAILED, "transient", "pending", rounds=0), AlertReason.REOPENED),
        (failed(FailureCode.CONTACT_NOT_FOUND, status="pending", rounds=0), AlertReason.REOPENED),
        (failed(FailureCode.CONTACT_NOT_FOUND), AlertReason.CONTACT_NOT_FOUND),
        (failed(FailureCode.INVALID_REQUEST), AlertReason.CHANGE_REFUSED),
        (failed(FailureCode.BREAKER, "stage", "pending", rounds=0), AlertReason.OUTAGE),
        (failed(FailureCode.DEADLINE, "stage", "pending", rounds=0), AlertReason.OUT_OF_TIME),
        (failed(FailureCode.PORTAL_KEY_REFUSED, "stage", "pending", rounds=0), AlertReason.OPERATOR),
        (push(0, code=FailureCode.PORTAL_KEY_REFUSED), AlertReason.OPERATOR),
    ):
        assert why_push_waits(state) is reason, state
    for code in (None, "a code of a newer certjob"):
        assert why_push_waits(failed(code)) is AlertReason.CHANGE_REFUSED
        assert why_push_waits(failed(code, "stage", "pending", rounds=0)) is AlertReason.OPERATOR
        assert why_push_waits(failed(code, "transient", "pending")) is AlertReason.NO_ANSWER
        assert why_message_waits(code) is AlertReason.MESSAGE_REFUSED


def test_of_a_servers_answer_its_own_words_are_shown() -> None:
    """Where the reason says it all, nothing."""
    error = "the mail server refused the recipient (550 5.1.1 <recipient> unknown (mailbox))"
    assert AlertReason.ADDRESS_REFUSED.technical(error) == "550 5.1.1 <recipient> unknown (mailbox)"
    assert AlertReason.MESSAGE_REFUSED.technical("something unforeseen") == "something unforeseen"
    assert AlertReason.NO_ADDRESS.technical("no address") == ""
