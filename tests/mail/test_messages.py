"""What a mentor reads."""

import html
import itertools
import re
from datetime import date
from typing import Any

import pytest

from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.content import LANGUAGES
from certjob.mail.messages.samples import sample_digests
from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.looks.contrast import contrasts
from tests.support.mails import Page, breakable, written_reminder

AA = 4.5
"""WCAG 2.2, 1.4.3: the least contrast of a text."""
NOWHERE: dict[str, Any] = {"contact_email": None, "contact_phone": None, "renewal_url": None}

in_each_language = pytest.mark.parametrize("locale", sorted(LANGUAGES))


def words_of(message: OutgoingMessage) -> str:
    """Everything a mentor could read, in either part."""
    return "\n".join((message.subject, message.text, html.unescape(message.html)))


@pytest.mark.parametrize(
    ("locale", "days_left", "subject", "sentence"),
    [
        ("nb", 14, "går ut om 14 dager, 24. mars", "går ut 24. mars 2026. Du har 14 dager på deg til å fornye det."),
        ("nb", 1, "går ut i morgen, 11. mars", "går ut i morgen, 11. mars 2026. Du kan fortsatt fornye det."),
        ("nb", 0, "går ut i dag, 10. mars", "går ut i dag, 10. mars 2026. Det gjelder ut dagen."),
        ("nb", -1, "gikk ut i går, 9. mars", "gikk ut i går, 9. mars 2026."),
        ("nb", -3, "gikk ut 7. mars", "gikk ut 7. mars 2026."),
        ("nn", 14, "går ut om 14 dagar, 24. mars", "går ut 24. mars 2026. Du har 14 dagar på deg til å fornye det."),
        ("nn", 1, "går ut i morgon, 11. mars", "går ut i morgon, 11. mars 2026. Du kan framleis fornye det."),
        ("en", 14, "expires in 14 days, on 24 March", "expires on 24 March 2026. You have 14 days left to renew it."),
        ("en", 0, "expires today, 10 March", "expires today, 10 March 2026. It is valid until the end of the day."),
        ("en", -3, "expired on 7 March", "expired on 7 March 2026."),
    ],
)
def test_it_says_when_in_words_of_the_language(locale: str, days_left: int, subject: str, sentence: str) -> None:
    message = written_reminder(locale=locale, days_left=days_left)

    certificate = "Your certificate" if locale == "en" else "Sertifikatet ditt"
    kind = "“likeperson”" if locale == "en" else "«likeperson»"
    assert breakable(message.subject) == f"{certificate} {subject} ({kind})"
    assert f". {certificate} {kind} {sentence}\n" in breakable(message.text)
    assert f". {certificate} {kind} {sentence} " in Page(message.html).text


@in_each_language
def test_both_parts_say_the_same_in_every_situation(locale: str) -> None:
    """And not a word of a pause for an optional kind: its expiry pauses nobody, and must not frighten."""
    for days_left, pauses, paused, repeat, places in itertools.product(
        (14, 1, 0, -1), (True, False), (True, False), (True, False), ({}, NOWHERE)
    ):
        message = written_reminder(
            locale=locale, days_left=days_left, pauses=pauses, paused=paused, repeat=repeat, **places
        )

        words = re.sub(r"^-+$", "", message.text, flags=re.MULTILINE)  # they mark the headings
        words = words.replace(":\nhttps", "\nhttps")
        assert Page(message.html).text == breakable(f"HLF Øst {message.subject} {' '.join(words.split())}")
        assert "\n\n\n" not in message.text
        assert message.text.endswith("\nHLF Øst\n")
        assert bool(re.search(r"\bpause", words_of(message), re.IGNORECASE)) <= pauses


@pytest.mark.parametrize(
    ("locale", "days_left", "paused", "sentence"),
    [
        ("nb", 14, False, "tar du pause fra oppdragene til det er på plass."),
        ("nb", 14, True, "Du er på pause nå fordi et annet sertifikat ikke lenger er gyldig."),
        ("nb", -1, True, "Derfor er du på pause nå, og du kan dessverre ikke ta oppdrag som likeperson."),
        ("nb", -1, False, "Uten gyldig sertifikat kan du dessverre ikke ta oppdrag som likeperson."),
        ("nn", 14, False, "tek du pause frå oppdraga til det er på plass."),
        ("nn", -1, True, "Difor er du på pause no, og du kan dessverre ikkje ta oppdrag som likeperson."),
        ("en", 0, False, "your work as a peer mentor will be paused until you have a valid certificate."),
        ("en", -1, True, "Your work as a peer mentor is therefore paused."),
    ],
)
def test_it_says_what_the_expiry_means_for_the_mentor(
    *, locale: str, days_left: int, paused: bool, sentence: str
) -> None:
    assert sentence in written_reminder(locale=locale, days_left=days_left, paused=paused).text


def test_only_a_repeat_says_that_it_may_be_one() -> None:
    for locale, line in {
        "nb": "Har du allerede fått denne påminnelsen? Da kan du se bort fra denne.",
        "nn": "Har du alt fått denne påminninga? Då kan du sjå bort frå denne.",
        "en": "You may already have received this reminder. If so, please ignore this copy.",
    }.items():
        assert line not in words_of(written_reminder(locale=locale))
        assert line in written_reminder(locale=locale, repeat=True).text


@in_each_language
def test_the_page_is_for_everyone_and_reads_well_on_a_phone(locale: str) -> None:
    """Headings and language for screen readers, nothing fetched from elsewhere; what and when in 60 characters."""
    document = written_reminder(locale=locale).html
    page = Page(document)

    assert page.language == locale
    assert document.count(f'lang="{locale}"') == 2  # mail programs on the web drop the html element
    assert (page.tags.count("h1"), page.tags.count("h2")) == (1, 2)
    assert not {"img", "script", "link", "iframe"} & set(page.tags)
    assert page.tags.count("table") == document.count('role="presentation"') - document.count("<!--[if mso]><table")
    assert page.links == [*["https://hlf.example/forny?a=1&b=2"] * 2, "mailto:kontakt@hlf.example", "tel:+4722000000"]
    words = "Renew your certificate at" if locale == "en" else "Forny sertifikatet på"
    assert f">{words} hlf.example</a>" in document, "whoever fears a fraud sees where it leads"
    for days_left in (60, 1, 0, -1, -14):
        september = date(2026, 9, 30)  # the longest month in all three languages
        message = written_reminder(locale=locale, days_left=days_left, expires_on=september)
        assert len(message.subject.partition(" (")[0]) <= 60
        assert not re.search(r"\d\.? (?:september|dag|days)|\bE-(?:post|mail)", words_of(message), re.IGNORECASE)
        preheader = Page(message.html).preheader
        assert preheader
        assert preheader not in message.subject


def test_a_name_is_written_as_it_is_and_what_is_missing_leaves_no_gap() -> None:
    """A number in place of a name is the coldest line there can be; nobody is left without somebody to ask."""
    for name in ("K" * 300, "Kari 👩‍🏫 Nordmann", 'Kari "Ea" O\'Nordmann', "קארי"):
        message = written_reminder(full_name=name)
        assert f"Hei, {name}!" in message.text.splitlines()
        assert f"Hei, {name}!" in Page(message.html).text
        assert message.subject == written_reminder().subject
    for nothing in (None, "", " \x00 "):
        assert "Hei!" in written_reminder(full_name=nothing).text.splitlines()
    without_kind = written_reminder(kind="")
    assert breakable(without_kind.subject) == "Sertifikatet ditt går ut om 14 dager, 24. mars"
    assert "Sertifikatet ditt går ut 24. mars 2026." in breakable(without_kind.text)
    for locale in LANGUAGES:
        message = written_reminder(locale=locale, **NOWHERE)
        assert message.text.count("HLF Øst") == 4
        assert "None" not in words_of(message)
        assert Page(message.html).links == []


def test_what_is_no_address_is_shown_and_cannot_be_pressed() -> None:
    """A link shows the real place, whatever stands before an @. Answers are invited where Reply-To can take them."""
    for url in ("javascript:alert(1)", "hlf.example/forny", "https://[::1", "https:///x", "javascript://x.example/%0a"):
        page = Page(written_reminder(renewal_url=url, contact_phone="spør i resepsjonen").html)
        assert (url in page.text, "spør i resepsjonen" in page.text) == (True, True)
        assert not any(link.startswith(("javascript", "h", "tel:")) for link in page.links)
    pretends = written_reminder(renewal_url="https://hlf.example@elsewhere.example/")
    assert "på elsewhere.example" in Page(pretends.html).text
    assert "på elsewhere.example:\nhttps://hlf.example@" in pretends.text
    invitation = "Du kan svare på denne e\u2011posten."
    for contact in ("ring oss", "a@b.example?subject=x", "kåre@hlf.example"):
        message = written_reminder(contact_email=contact)
        page = Page(message.html)
        assert (contact in page.text, contact in message.text, invitation in message.text + message.html) == (
            True,
            True,
            False,
        )
        assert not any(link.startswith("mailto:") for link in page.links)
    assert invitation in written_reminder().text


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read(*, dark: bool) -> None:
    """In both palettes, and these are two. Where a mail program drops the head, the light one is on the elements."""
    pages = [written_reminder().html]
    pages += [OUR_TEMPLATES.render("digest", slug="", words=words).html for words in sample_digests("nb")]

    found = [each for page in pages for each in contrasts(page, dark=dark)]

    assert [(colour, ground, text) for ratio, colour, ground, text in found if ratio < AA] == []
    grounds = {ground for _, _, ground, _ in found}
    assert ("#16181c" in grounds, "#ffffff" in grounds) == (dark, not dark)
    bare = re.sub(r"(?s)<style>.*</style>", "", pages[0])
    assert list(contrasts(bare, dark=dark)) == list(contrasts(pages[0], dark=False))
