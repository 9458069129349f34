"""The page's words are those of the `.words` files. This test needs no browser."""

import json
import re
from typing import Any

from jinja2 import Environment, FileSystemLoader

from certjob.domain.alert_kinds import WORDS
from certjob.mail.messages.content import LANGUAGES
from certjob.mail.messages.templates import OUR_FOLDER
from tests.support.docs import ROOT

FILE = ROOT / "docs/examples/dashboard/words.json"
SHOWN = ("held", "unreviewed", "visible", "hidden", "undelivered")
"""The sections of a digest that the page has."""
SETTINGS = {"name": "", "organisation": "", "operator_address": "", "has_portal": True}


def words_of(language: str) -> dict[str, Any]:
    """Return the words of a language, by section of the page, cause, and use on the page."""
    templates = Environment(loader=FileSystemLoader(OUR_FOLDER), autoescape=False)  # noqa: S701 - the page sets texts
    digest, page = (
        vars(templates.get_template(f"{name}.{language}.words").make_module(SETTINGS))
        for name in ("digest", "dashboard")
    )
    return {
        "headings": {name: digest["headings"][name] for name in SHOWN},
        "intros": {name: digest["intros"][name] for name in SHOWN},
        "causes": digest["held_what"] | digest["causes"],
        "since": digest["since"],
        "more": digest["more"],
        "page": {name: page[name] for name in sorted(page) if not name.startswith("_")},
    }


def test_words_of_the_page_are_those_of_the_digests() -> None:
    """Writes the file if it differs, so after a change of words run this test twice and commit the file."""
    words = {language: words_of(language) for language in LANGUAGES}
    text = json.dumps(words, ensure_ascii=False, indent=2) + "\n"
    is_current = FILE.exists() and FILE.read_text(encoding="utf-8") == text

    if not is_current:
        FILE.write_text(text, encoding="utf-8")

    assert is_current, "words.json was out of date and has been rewritten"


def test_languages_of_the_page_have_the_same_words() -> None:
    """A missing word would be an empty button."""
    names = {
        language: {part: value.keys() for part, value in words_of(language).items() if isinstance(value, dict)}
        for language in LANGUAGES
    }

    assert names["nb"] == names["nn"] == names["en"]


def test_page_has_the_sections_of_the_digests() -> None:
    """For each kind of alert that coordinators see in both."""
    text = (ROOT / "docs/examples/dashboard/dashboard.js").read_text(encoding="utf-8")

    sections = {name: set(re.findall(r"\w+", kinds)) for name, kinds in re.findall(r"^  (\w+): \[(.+)\],$", text, re.M)}

    assert sections.keys() == set(SHOWN)
    for kind, words in WORDS.items():
        if words.section in SHOWN:
            assert kind in sections[words.section]
