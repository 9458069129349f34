"""What mentors and coordinators read, in three languages, as text and as a page."""

import html
import re
from collections.abc import Mapping
from typing import Any

import pytest

from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.content import LANGUAGES, RenderedMessage
from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.mail.written import breakable, links, visible_text, written_reminder
from tests.support.samples import SAMPLES, sample_digests

URGENT = {"nb": "Haster", "nn": "Hastar", "en": "Urgent"}

in_each_language = pytest.mark.parametrize("language", LANGUAGES)


def all_of(message: OutgoingMessage | RenderedMessage) -> str:
    return "\n".join((message.subject, message.text, html.unescape(message.html)))


def digest(words: Mapping[str, Any]) -> RenderedMessage:
    return OUR_TEMPLATES.render("digest", words=words)


def full(language: str, **words: Any) -> dict[str, Any]:
    """Return the variables of a digest with two or three lines in every section."""
    return dict(next(sample_digests(language))) | words


def only(section: str, count: int = 1) -> dict[str, Any]:
    """Return the variables of a digest with so many lines in one section."""
    words = full("nb")
    sections: dict[str, Any] = {name: [] for name, rows in words.items() if isinstance(rows, list)}
    urgent = [name for name in words["urgent"] if name == section]
    lines = {section: [words[section][0]] * count, "urgent": urgent, "acknowledged": {"number": 0, "until": ""}}
    return words | sections | lines


@in_each_language
def test_text_and_page_say_the_same_in_every_situation(language: str) -> None:
    """The heading of the page is the subject. Only a kind that pauses mentions a pause."""
    for kind, samples in SAMPLES.items():
        for words in samples(language):
            message = OUR_TEMPLATES.render(kind, words=words)

            said = re.sub(r"^(?:\* | +- |-+$)", "", message.text, flags=re.MULTILINE)  # marks of lists and headings
            said = re.sub(r":(\s)https", r"\1https", said)
            both = (visible_text(message.html), breakable(f"Hørselshjelpen {message.subject} {' '.join(said.split())}"))
            page, text = (part.replace(f"{URGENT[language]}: ", f"{URGENT[language]} ") for part in both)
            assert page == text
            assert "\n\n\n" not in message.text
            assert words.get("pauses", True) or not re.search(r"\bpause", all_of(message), re.IGNORECASE)


@pytest.mark.parametrize(
    ("days_left", "subject"),
    [
        (14, "Sertifikatet ditt går ut 24. mars, om 14 dager"),
        (1, "Sertifikatet ditt går ut i morgen, 11. mars"),
        (0, "Sertifikatet ditt går ut i dag, 10. mars"),
        (-1, "Sertifikatet ditt gikk ut i går, 9. mars"),
        (-3, "Sertifikatet ditt gikk ut 7. mars"),
    ],
)
def test_subject_of_a_reminder_says_when(days_left: int, subject: str) -> None:
    """A known kind follows in brackets. The first sentence has the date with its year."""
    message, without_kind = (written_reminder(days_left=days_left, kind=kind) for kind in ("likeperson", ""))

    assert breakable(message.subject) == f"{subject} («likeperson»)"
    assert breakable(without_kind.subject) == subject
    for each in (message, without_kind):
        assert re.search(r"Sertifikatet ditt[^.]* (går|gikk) ut [^.]*\d+\. mars 2026\.", breakable(each.text))


@pytest.mark.parametrize(
    ("days_left", "paused", "sentence"),
    [
        (14, False, "Er sertifikatet ikke fornyet før det går ut, setter vi deg på pause."),
        (14, True, "Du er på pause som likeperson fordi et annet av sertifikatene dine ikke lenger er gyldig."),
        (0, False, "Blir sertifikatet ikke fornyet i dag, setter vi deg på pause fra i morgen."),
        (-1, True, "Derfor har vi satt deg på pause, og du kan dessverre ikke ta oppdrag som likeperson nå."),
        (-1, False, "Uten gyldig sertifikat kan du dessverre ikke ta oppdrag som likeperson."),
    ],
)
def test_reminder_says_what_the_expiry_means(*, days_left: int, paused: bool, sentence: str) -> None:
    """Who pauses whom, and when."""
    assert sentence in written_reminder(days_left=days_left, paused=paused).text


@pytest.mark.parametrize(
    ("language", "said"),
    [("nb", "Du har kanskje fått"), ("nn", "Du har kanskje fått"), ("en", "You may have received")],
)
def test_only_a_repeat_says_that_it_may_be_one(language: str, said: str) -> None:
    """Directly under the greeting, before the reader has read it all again."""
    assert said not in all_of(written_reminder(locale=language)) + all_of(digest(full(language)))
    for text in (written_reminder(locale=language, repeat=True).text, digest(full(language, repeat=True)).text):
        assert text.split("\n\n")[1].startswith(said)


@in_each_language
def test_reminder_shows_where_its_links_lead(language: str) -> None:
    """The button names the host, and the address is below it. No content is loaded from other servers."""
    document = written_reminder(locale=language).html
    renew, *others = "https://hlf.example/forny?a=1&b=2", "mailto:kontakt@hlf.example", "tel:+4722000000"
    assert links(document) == [renew, renew, *others]
    words = "Renew your certificate at" if language == "en" else "Forny sertifikatet på"
    assert f">{words} hlf.example</a>" in document


@in_each_language
def test_missing_facts_leave_no_gap(language: str) -> None:
    """The greeting has no name, and the mentor is told to ask the organisation."""
    nothing: dict[str, Any] = {"contact_email": None, "contact_phone": None, "renewal_url": None}
    for name in (None, " \x00 "):
        message = written_reminder(locale=language, full_name=name, **nothing)
        assert {"Hei!", "Hello,"} & {*message.text.splitlines()}
        assert (message.text.count("HLF Øst"), "None" in all_of(message), links(message.html)) == (5, False, [])


@pytest.mark.parametrize("url", ["javascript:alert(1)", "hlf.example/forny", "https://[::1", "https:///x"])
def test_invalid_address_of_a_page_is_shown_without_a_link(url: str) -> None:
    """So is a telephone number without digits."""
    page = written_reminder(renewal_url=url, contact_phone="spør i resepsjonen").html
    assert (url in visible_text(page), "spør i resepsjonen" in visible_text(page)) == (True, True)
    assert not any(link.startswith(("javascript", "h", "tel:")) for link in links(page))


def test_link_shows_its_real_host() -> None:
    """Not the text before an @."""
    pretends = written_reminder(renewal_url="https://hlf.example@elsewhere.example/")
    assert "på elsewhere.example" in visible_text(pretends.html)
    assert "på elsewhere.example:\nhttps://hlf.example@" in pretends.text


@in_each_language
def test_digest_marks_what_is_urgent_and_nothing_else(language: str) -> None:
    """Urgent: someone without a valid certificate may still be visible."""
    message, quiet = digest(full(language)), digest(full(language, urgent=[]))

    assert f"\n{URGENT[language]}: " in message.text
    assert message.html.count(f">{URGENT[language]}</span>") == len(full(language)["urgent"]) == 4
    assert f"{URGENT[language]}:" not in all_of(quiet)
    assert f">{URGENT[language]}</span>" not in quiet.html


@in_each_language
def test_digest_does_not_mention_a_portal_that_does_not_exist(language: str) -> None:
    """Mentors are paused, but no one can be visible."""
    about_portal = ("urgent", "visible", "hidden", "by_hand", "unknown", "corrected", "dated")
    words = full(language, has_portal=False, **{section: [] for section in about_portal})
    held = [row for row in words["held"] if row["what"] not in ("portal", "contacts")]
    assert "portal" not in all_of(digest(words | {"held": held})).lower()


@pytest.mark.parametrize(
    ("section", "subject"),
    [
        ("held", "Haster: 66 endringer må avklares"),
        ("visible", "Haster: 2 likepersoner vises kanskje fortsatt på portalen"),
        ("not_run", "Haster: sertifikatene er ikke kontrollert siden 31. januar"),
        ("paused", "2 nye på pause"),
        ("expiring", "2 sertifikater går ut innen 30 dager"),
    ],
)
def test_subject_of_a_digest_has_the_first_section(section: str, subject: str) -> None:
    """The organisation follows in brackets."""
    assert breakable(digest(only(section, 2)).subject) == f"{subject} (Hørselshjelpen)"


@in_each_language
def test_digest_begins_with_the_news(language: str) -> None:
    """The first paragraph is the sentence of the subject. The other sections follow, each once."""
    message = digest(full(language))
    greeting, news, intro, *_ = message.text.split("\n\n")

    assert f"{news.removesuffix('.')} (Hørselshjelpen)" == message.subject
    assert (greeting.count("\n"), "Hørselshjelpen" in intro) == (0, True)
    assert message.text.count(news.removesuffix(".")) == 1


@pytest.mark.parametrize(
    ("language", "since"), [("nb", "siden forrige"), ("nn", "sidan førre"), ("en", "since the last")]
)
def test_first_digest_does_not_mention_an_earlier_one(language: str, since: str) -> None:
    assert since in all_of(digest(full(language, is_first=False)))
    assert since not in all_of(digest(full(language, is_first=True)))


@in_each_language
def test_address_of_the_operators_is_a_link(language: str) -> None:
    """Wherever the page names it."""
    page = digest(full(language)).html

    assert page.count("drift@example.org") == 2 * links(page).count("mailto:drift@example.org") > 0


def test_causes_are_sorted_by_harm() -> None:
    """First those that last until a person acts."""
    sentences = (
        "Vi kan ikke lenger skjule",
        "mangler i appen",
        "finnes ikke i Dynamics",
        "Dynamics godtok ikke",
        "Vi får ikke oppdatert portalen",
        "Portalen hadde problemer",
        "Endringen står i kø",
        "E\u2011postadressen mangler",
        "E\u2011postadressen er feil",
        "Vi får ikke sendt",
        "har kanskje ikke kommet fram",
    )
    message = digest(full("nb"))

    for text in (message.text, message.html):
        places = [text.index(sentence) for sentence in sentences]
        assert places == sorted(places)


@in_each_language
def test_reminder_says_why_someone_gets_it(language: str) -> None:
    """And what to do after leaving."""
    why = {
        "nb": "Du får denne påminnelsen fordi",
        "nn": "Du får denne påminninga fordi",
        "en": "You get this reminder because",
    }

    assert why[language] in written_reminder(locale=language).text
