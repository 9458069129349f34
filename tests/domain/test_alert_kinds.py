"""Kinds and causes of alerts: the digests and the documents have the same, each with its advice."""

import re
from typing import Any

import pytest

from certjob.domain.alert_kinds import WORDS, Kind
from certjob.domain.causes import advise_on_message, advise_on_push
from certjob.errors import Cause
from certjob.mail.messages.content import LANGUAGES
from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.support.docs import read_section
from tests.support.samples import SAMPLES


def kinds_of_document(page: str, title: str, key: str) -> set[Kind]:
    """Return the kinds in the row of a key."""
    row = re.search(rf"^\| `{re.escape(key)}` \|.*$", read_section(page, title), flags=re.MULTILINE)
    assert row is not None
    return set(Kind) & set(re.findall(r"`(\w+)`", row[0]))


def test_documents_have_the_kinds_of_coordinators() -> None:
    """A kind that only an operator can act on is not in their view."""
    coordinators = {kind for kind in Kind if WORDS[kind].section} - {
        Kind.NO_FULL_RUN,
        Kind.FACTS_MISSING,
        Kind.UNKNOWN_CONTACTS,
    }

    assert coordinators == kinds_of_document("docs/dashboard.md", "What to read", "kind")


@pytest.mark.parametrize("language", LANGUAGES)
def test_digest_has_a_heading_for_each_section(language: str) -> None:
    """Each heading is different. The samples have rows for every section."""
    words = dict(next(iter(SAMPLES["digest"](language))))
    sections = {kind_words.section for kind_words in WORDS.values() if kind_words.section}
    pages = set()
    for section in sections:
        empty: dict[str, Any] = {name: [] for name, rows in words.items() if isinstance(rows, list)}
        pages.add(OUR_TEMPLATES.render("digest", words=words | empty | {section: words[section][:1]}).subject)

    assert len(pages) == len(sections)


@pytest.mark.parametrize("cause", Cause)
def test_cause_has_a_sentence_and_an_action(cause: Cause) -> None:
    advice = advise_on_message(cause)
    action = advice.advise(resync="`certjob resync M1`", next_try="at 03:15", message="digest")

    assert (advice.cause, advice.why[-1], action.rstrip("`")[-1]) == (cause, ".", ".")
    assert "{" not in action
    assert ("at 03:15" in action) == ("{next_try}" in advice.action)


@pytest.mark.parametrize("language", ["nb", "nn", "en"])
def test_digest_has_a_sentence_for_each_cause(language: str) -> None:
    words = dict(next(iter(SAMPLES["digest"](language))))
    pages = set()
    for cause in Cause:
        words["visible"] = [{"name": "Kari", "member_no": "M1", "since": "today", "sentence": "", "cause": cause}]
        pages.add(OUR_TEMPLATES.try_out("digest", words=words).html)

    assert len(pages) == len(Cause)


def test_push_that_no_delivery_tried_has_its_own_advice() -> None:
    """The fault is in cron, not in the portal."""
    assert "check that cron" in advise_on_push(Cause.PORTAL_STOPPED, error=None).action.lower()
    assert "cron" not in advise_on_push(Cause.PORTAL_STOPPED, error="401").action


def test_unknown_cause_has_the_advice_for_operators() -> None:
    """Another version of certjob may have stored it."""
    assert advise_on_push("a newer cause", error="x").cause is Cause.PORTAL_STOPPED
    assert advise_on_message("a newer cause").cause is Cause.MAIL_STOPPED
