"""What a coordinator reads: three languages, both parts alike, and the causes in words that help."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from certjob.mail.messages import LANGUAGES, OUR_TEMPLATES, RenderedMessage
from certjob.mail.messages.samples import sample_digests
from tests.support.mails import Page

SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"
SECTIONS = ("visible", "paused", "returned", "undelivered", "hidden", "expiring")


def full(language: str) -> dict[str, Any]:
    """A digest with two or three lines in every section."""
    return dict(next(sample_digests(language)))


def written(words: Mapping[str, Any]) -> RenderedMessage:
    return OUR_TEMPLATES.render("digest", language=str(words["language"]), slug="", words=words)


def only(section: str, *, language: str, count: int) -> dict[str, Any]:
    """A digest with so many lines in one section and no others."""
    words = full(language)
    return words | {name: [] for name in SECTIONS} | {section: words[section][:1] * count}


@pytest.mark.parametrize("language", LANGUAGES)
def test_both_parts_say_the_same(language: str) -> None:
    """Whoever reads the text part misses nothing; the heading of the page is the subject."""
    for words in sample_digests(language):
        message = written(words)

        listed = re.sub(r"^\* ", "", message.text, flags=re.MULTILINE)
        assert Page(message.html).text == f"{message.subject} {' '.join(listed.split())}"
        assert "\n\n\n" not in message.text


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_is_for_everyone(language: str) -> None:
    """One heading for the page and one for each section, lists that are lists, nothing fetched from elsewhere."""
    page = Page(written(full(language)).html)

    assert page.language == language
    assert (page.tags.count("h1"), page.tags.count("h2"), page.tags.count("ul")) == (1, 6, 6)
    assert not {"img", "script", "link", "iframe", "style", "table", "a"} & set(page.tags)


@pytest.mark.parametrize("language", ["nb", "nn"])
def test_what_stays_english_is_marked_as_english(language: str) -> None:
    """A screen reader changes its voice for it."""
    html = written(full(language)).html

    assert f'<span lang="en">{SENTENCE}</span>' in html
    assert '<span lang="en">(404 contact_not_found)</span>' in html
    assert html.count(SENTENCE) == html.count(f'<span lang="en">{SENTENCE}</span>') == 2


@pytest.mark.parametrize(
    ("language", "section", "one", "two"),
    [
        ("nb", "visible", "1 kan fortsatt være synlig på portalen", "2 kan fortsatt være synlige på portalen"),
        ("nb", "paused", "1 satt på pause", "2 satt på pause"),
        ("nb", "returned", "1 er tilbake", "2 er tilbake"),
        ("nb", "undelivered", "1 melding kom ikke fram", "2 meldinger kom ikke fram"),
        ("nb", "hidden", "1 kan fortsatt være skjult på portalen", "2 kan fortsatt være skjulte på portalen"),
        ("nb", "expiring", "1 sertifikat går ut snart", "2 sertifikater går ut snart"),
        ("nn", "visible", "1 kan framleis vere synleg på portalen", "2 kan framleis vere synlege på portalen"),
        ("nn", "paused", "1 sett på pause", "2 sette på pause"),
        ("nn", "undelivered", "1 melding kom ikkje fram", "2 meldingar kom ikkje fram"),
        ("nn", "expiring", "1 sertifikat går ut snart", "2 sertifikat går ut snart"),
        ("en", "undelivered", "1 message not delivered", "2 messages not delivered"),
        ("en", "expiring", "1 certificate ends soon", "2 certificates end soon"),
    ],
)
def test_the_subject_begins_with_what_happened(language: str, section: str, one: str, two: str) -> None:
    """A phone shows its beginning only; for whom it is comes last."""
    subjects = [written(only(section, language=language, count=count)).subject for count in (1, 2)]

    assert subjects == [f"{one} (Hørselshjelpen)", f"{two} (Hørselshjelpen)"]


def test_the_most_urgent_comes_first_and_three_things_are_enough() -> None:
    """Who may still be visible, before everything else."""
    assert written(full("en")).subject == (
        "2 may still be visible on the portal, 3 paused, 3 back again (Hørselshjelpen)"
    )


@pytest.mark.parametrize(("language", "more"), [("nb", "og 1 til"), ("nn", "og 1 til"), ("en", "and 1 more")])
def test_a_long_list_says_how_many_more_there_are(language: str, more: str) -> None:
    """In both parts, in the reader's language."""
    message = written(only("paused", language=language, count=51))

    assert message.text.count("\n* ") == 51
    assert f"\n* {more}\n" in message.text
    assert f"<li>{more}</li>" in message.html


def test_a_mentor_without_a_name_is_one_number_and_not_two() -> None:
    """The member number stands for the name; said twice it would look like a mistake."""
    message = written(full("nb"))

    assert "\n* M1002, er fortsatt på pause av en annen grunn\n" in message.text
    assert "M1002 (M1002)" not in message.text + message.html


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_repeat_says_so(language: str) -> None:
    """In the reader's words, and only then."""
    lines = {"nb": "mer enn én gang", "nn": "meir enn éin gong", "en": "may receive this summary again"}

    once, again = (written(full(language) | {"repeat": repeat}) for repeat in (False, True))

    assert lines[language] not in once.text + once.html
    assert lines[language] in again.text
    assert lines[language] in again.html


# Reasons


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_the_server_said_stands_beside_the_reason(language: str) -> None:
    """In the words of whoever said it, which are not ours to trust."""
    words = only("undelivered", language=language, count=1)
    words["undelivered"] = [words["undelivered"][0] | {"reason": "Why.", "technical": "<unforeseen>"}]

    message = written(words)

    assert "2027: Why. (<unforeseen>)\n" in message.text
    assert "&lt;unforeseen&gt;" in message.html
