"""Why something is not delivered: each cause has its advice, and the first that applies is chosen."""

import pytest

from certjob.domain.causes import NEVER_TRIED, advise_on_message, advise_on_push
from certjob.errors import Cause
from certjob.mail.messages.samples import SAMPLES
from certjob.mail.messages.templates import OUR_TEMPLATES


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


def test_a_push_that_no_delivery_reached_has_its_own_advice() -> None:
    """Nothing is wrong with the portal: cron is."""
    assert advise_on_push(Cause.PORTAL_STOPPED, error=None) is NEVER_TRIED
    assert advise_on_push(Cause.PORTAL_STOPPED, error="401").cause is Cause.PORTAL_STOPPED


@pytest.mark.parametrize("code", ["", "a cause of a newer certjob"])
def test_an_unknown_cause_is_for_the_operator(code: str) -> None:
    """There is always something to do."""
    assert advise_on_push(code, error="x").cause is Cause.PORTAL_STOPPED
    assert advise_on_message(code).cause is Cause.MAIL_STOPPED
