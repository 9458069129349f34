"""What a coordinator reads: three languages, both parts alike, and the causes in words that help."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from certjob.mail.messages.content import LANGUAGES, RenderedMessage
from certjob.mail.messages.samples import sample_digests
from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.support.mails import Page, breakable

SENTENCE = "Dynamics sync pending — mentor may still be visible on portal"
URGENT = {"nb": "Haster", "nn": "Hastar", "en": "Urgent"}
REPEAT = {"nb": "Har du allerede fått", "nn": "Har du alt fått", "en": "may already have received this"}
SECTIONS = ("held", "unreviewed", "visible", "paused", "returned", "corrected", "undelivered", "hidden", "expiring")

in_each_language = pytest.mark.parametrize("language", LANGUAGES)


def full(language: str) -> dict[str, Any]:
    """A digest with two or three lines in every section."""
    return dict(next(sample_digests(language)))


def written(words: Mapping[str, Any]) -> RenderedMessage:
    return OUR_TEMPLATES.render("digest", slug="", words=words)


def only(section: str, *, language: str, count: int) -> dict[str, Any]:
    """A digest with so many lines in one section and no others."""
    words = full(language)
    return words | {name: [] for name in SECTIONS} | {section: words[section][:1] * count}


@in_each_language
def test_both_parts_say_the_same(language: str) -> None:
    """Whoever reads the text part misses nothing; the heading of the page is the subject."""
    for words in sample_digests(language):
        message = written(words)

        listed = re.sub(r"^(?:\* | +- |-+$)", "", message.text, flags=re.MULTILINE)
        listed = listed.replace(f"{URGENT[language]}: ", f"{URGENT[language]} ").replace(": https", " https")
        assert Page(message.html).text == breakable(f"Hørselshjelpen {message.subject} {' '.join(listed.split())}")
        assert "\n\n\n" not in message.text


@in_each_language
def test_the_page_is_for_everyone(language: str) -> None:
    """Lists that are lists, nothing fetched from elsewhere; a screen reader changes its voice for a server's words."""
    message = written(full(language))
    page = Page(message.html)

    assert page.language == language
    assert (page.tags.count("h1"), page.tags.count("h2"), page.tags.count("ul")) == (1, 9, 12)
    assert not {"img", "script", "link", "iframe"} & set(page.tags)
    assert '<span lang="en">(404 contact_not_found)</span>' in message.html
    assert message.text.count(SENTENCE) == message.html.count(SENTENCE) == (2 if language == "en" else 0)


HELD = """\
* 33 likepersoner ville blitt satt på pause eller skjult (har ventet siden {})
  3 likepersoner har sertifikater som har gått ut på vanlig måte.
  30 likepersoner har fått endrede opplysninger.
  33 kan fortsatt være synlige på portalen, men skal ikke vises. Hvis det haster, kan du skjule dem selv i Dynamics:
  - Kari Nordmann (M1001)
  - og 32 til
"""
ENDS = {"nb": (" går ut ", " gikk ut "), "nn": (" går ut ", " gjekk ut "), "en": (" expires on ", " expired on ")}


@in_each_language
def test_what_is_held_or_undelivered_says_whose_certificates_have_really_ended(language: str) -> None:
    """And who may be shown on the portal, by name. Reminders are sent after the expiry too."""
    words = full("nb")
    assert HELD.format(breakable(words["held"][0]["since"])) in breakable(written(words).text)

    words = only("undelivered", language=language, count=1)
    item = words["undelivered"][0]
    for days_left, verb in zip((0, -1), ENDS[language], strict=True):
        message = written(words | {"undelivered": [item | {"days_left": days_left}]})
        assert f"{verb}{item['expires_on']}:" in message.text


@in_each_language
def test_what_is_urgent_a_repeat_or_in_the_app_is_marked_and_nothing_else(language: str) -> None:
    """Urgent is what is held, who could not be reviewed, and who may still be visible."""
    message = written(full(language) | {"app_url": "https://app.example/", "repeat": True})
    quiet = written(full(language) | {"app_url": "", "held": [], "unreviewed": [], "visible": []})

    assert f"\n{URGENT[language]}: " in message.text
    assert f">{URGENT[language]}</span>" in message.html
    assert REPEAT[language] in message.text
    assert ": https://app.example/\n" in message.text
    assert Page(message.html).links == ["https://app.example/"] * 2
    assert URGENT[language] not in quiet.text
    assert REPEAT[language] not in quiet.text
    assert Page(quiet.html).links == []


@pytest.mark.parametrize(
    ("language", "section", "one", "two"),
    [
        ("nb", "visible", "1 likeperson kan fortsatt være synlig på", "2 likepersoner kan fortsatt være synlige på"),
        ("nb", "held", "endringer venter på en avgjørelse", "endringer venter på en avgjørelse"),
        ("nb", "unreviewed", "1 likeperson kunne ikke vurderes", "2 likepersoner kunne ikke vurderes"),
        ("nb", "paused", "1 ny på pause", "2 nye på pause"),
        ("nb", "returned", "1 er tilbake", "2 er tilbake"),
        ("nb", "corrected", "1 endring på portalen er rettet", "2 endringer på portalen er rettet"),
        ("nb", "undelivered", "1 påminnelse kom ikke fram", "2 påminnelser kom ikke fram"),
        ("nb", "expiring", "1 sertifikat går ut snart", "2 sertifikater går ut snart"),
        ("nn", "undelivered", "1 påminning kom ikkje fram", "2 påminningar kom ikkje fram"),
        ("en", "expiring", "1 certificate expires soon", "2 certificates expire soon"),
    ],
)
def test_the_subject_says_whose_and_what_happened(language: str, section: str, one: str, two: str) -> None:
    """One and several are different words."""
    subjects = [written(only(section, language=language, count=count)).subject for count in (1, 2)]

    assert [subject.removesuffix(" portalen") for subject in subjects] == [
        f"Hørselshjelpen: {one}",
        f"Hørselshjelpen: {two}",
    ]


def test_the_most_urgent_comes_first_and_the_rest_is_counted() -> None:
    """A long list says how many more there are; a mentor without a name is one number and not two."""
    assert written(full("en") | {"held": [], "unreviewed": []}).subject == (
        "Hørselshjelpen: 2 mentors may still be visible on the portal and 16 more updates"
    )
    for language, more in (("nb", "og 1 til"), ("nn", "og 1 til"), ("en", "and 1 more")):
        message = written(only("paused", language=language, count=26))
        assert message.text.count("\n* ") == 26
        assert f"\n* {more}\n" in message.text
        assert f"<li>{more}</li>" in message.html
    message = written(full("nb"))
    assert "\n* M1002, er fortsatt på pause av en annen grunn\n" in message.text
    assert "M1002 (M1002)" not in message.text + message.html


def test_what_the_server_said_stands_beside_the_reason() -> None:
    """In the words of whoever said it, which are not ours to trust."""
    words = only("undelivered", language="nb", count=1)
    words["undelivered"] = [words["undelivered"][0] | {"reason": "Why.", "technical": "<unforeseen>"}]

    message = written(words)

    assert "2027: Why (<unforeseen>).\n" in message.text
    assert "&lt;unforeseen&gt;" in message.html
