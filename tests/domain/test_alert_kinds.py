"""The registry of alert kinds: the digests and the documents have the same kinds."""

import re
from typing import Any

import pytest

from certjob.domain.alert_kinds import WORDS, Kind
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
