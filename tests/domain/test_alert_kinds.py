"""The registry of alert kinds: the database, the digests and the documents have the same kinds."""

import re
from typing import Any

import pytest

from certjob.database import Connection
from certjob.domain.alert_kinds import WORDS, Kind
from certjob.mail.messages.content import LANGUAGES
from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.support.docs import read_section
from tests.support.samples import SAMPLES

BODIES = """
    SELECT pg_get_viewdef(c.oid) FROM pg_class AS c WHERE c.relnamespace = 'certjob_private'::regnamespace
        AND c.relkind = 'v' AND c.relname LIKE '%%alerts' AND (c.relname = ANY (%(names)s)) = %(are_named)s
    UNION ALL
    SELECT p.prosrc FROM pg_proc AS p WHERE p.proname = 'no_full_run_alert' AND NOT %(are_named)s
"""
COORDINATORS_VIEWS = """
    SELECT split_part(object, '.', 2) FROM certjob.rights
    WHERE role = 'authenticated' AND object LIKE 'certjob_private.%'
"""


def kinds_of_views(owner: Connection, *, for_coordinators: bool) -> set[Kind]:
    """Return the kinds that the definitions of the views name."""
    names = [row[0] for row in owner.execute(COORDINATORS_VIEWS).fetchall()]
    rows = owner.execute(BODIES, {"names": names, "are_named": for_coordinators}).fetchall()
    return set(Kind) & set(re.findall(r"'(\w+)'", " ".join(row[0] for row in rows)))


def kinds_of_document(page: str, title: str, key: str) -> set[Kind]:
    """Return the kinds in the row of a key."""
    row = re.search(rf"^\| `{re.escape(key)}` \|.*$", read_section(page, title), flags=re.MULTILINE)
    assert row is not None
    return set(Kind) & set(re.findall(r"`(\w+)`", row[0]))


def test_each_kind_has_a_view_and_stands_in_the_documents(connection: Connection) -> None:
    """A kind that only an operator can act on is not in the coordinators' view."""
    coordinators = kinds_of_views(connection, for_coordinators=True)
    operators = kinds_of_views(connection, for_coordinators=False)

    assert coordinators | operators == set(Kind)
    assert coordinators == kinds_of_document("docs/dashboard.md", "What to read", "kind")
    assert coordinators == {kind for kind in Kind if WORDS[kind].section} - {Kind.NO_FULL_RUN, Kind.FACTS_MISSING}


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
