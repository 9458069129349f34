"""What mentors and coordinators read: three languages, both parts alike, and what to do in words that help."""

import html
import re
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import babel.dates
import pytest

from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.content import LANGUAGES, RenderedMessage
from certjob.mail.messages.samples import SAMPLES, sample_digests
from certjob.mail.messages.templates import OUR_TEMPLATES
from tests.looks.contrast import contrasts
from tests.support.mails import Page, breakable, written_reminder

AA = 4.5
"""WCAG 2.2, 1.4.3: the least contrast of a text."""
NOWHERE: dict[str, Any] = {"contact_email": None, "contact_phone": None, "renewal_url": None}
URGENT = {"nb": "Haster", "nn": "Hastar", "en": "Urgent"}
SECTIONS = (
    *("not_run", "held", "unreviewed", "visible", "paused", "returned", "undelivered", "hidden", "uncertified"),
    "expiring",
)

in_each_language = pytest.mark.parametrize("language", LANGUAGES)


def words_of(message: OutgoingMessage | RenderedMessage) -> str:
    """Everything somebody could read, in either part."""
    return "\n".join((message.subject, message.text, html.unescape(message.html)))


def digest(words: Mapping[str, Any]) -> RenderedMessage:
    return OUR_TEMPLATES.render("digest", slug="", words=words)


def full(language: str, **words: Any) -> dict[str, Any]:
    """A digest with two or three lines in every section."""
    return dict(next(sample_digests(language))) | words


def only(section: str, count: int = 1, *, language: str = "nb", **line: Any) -> dict[str, Any]:
    """A digest with so many lines, in one section."""
    words = full(language)
    urgent = [name for name in words["urgent"] if name == section]
    alone = {name: [] for name in SECTIONS} | {section: [words[section][0] | line] * count}
    return words | alone | {"urgent": urgent, "acknowledged": {"number": 0, "until": ""}}


@in_each_language
def test_both_parts_say_the_same_in_every_situation(language: str) -> None:
    """The heading of the page is the subject. An optional kind's expiry pauses nobody, and must not frighten."""
    for kind, samples in SAMPLES.items():
        for words in samples(language):
            message = OUR_TEMPLATES.render(kind, slug="", words=words)

            said = re.sub(r"^(?:\* | +- |-+$)", "", message.text, flags=re.MULTILINE)  # they mark lists and headings
            said = re.sub(r":(\s)https", r"\1https", said)
            both = (Page(message.html).text, breakable(f"Hørselshjelpen {message.subject} {' '.join(said.split())}"))
            page, text = (part.replace(f"{URGENT[language]}: ", f"{URGENT[language]} ") for part in both)
            assert page == text
            assert "\n\n\n" not in message.text
            assert words.get("pauses", True) or not re.search(r"\bpause", words_of(message), re.IGNORECASE)


@pytest.mark.parametrize(
    ("language", "days_left", "subject", "sentence"),
    [
        (
            "nb",
            14,
            "Sertifikatet ditt går ut 24. mars, om 14 dager («likeperson»)",
            "Sertifikatet ditt «likeperson» går ut 24. mars 2026. Du har 14 dager på deg til å fornye det.",
        ),
        (
            "nb",
            1,
            "I morgen, 11. mars, går sertifikatet ditt ut («likeperson»)",
            "går ut i morgen, 11. mars 2026. Du rekker fortsatt å fornye det.",
        ),
        (
            "nb",
            0,
            "I dag, 10. mars, går sertifikatet ditt ut («likeperson»)",
            "går ut i dag, 10. mars 2026. Det er gyldig ut dagen.",
        ),
        ("nb", -1, "I går, 9. mars, gikk sertifikatet ditt ut («likeperson»)", "gikk ut i går, 9. mars 2026."),
        ("nb", -3, "Sertifikatet ditt gikk ut 7. mars («likeperson»)", "gikk ut 7. mars 2026."),
        (
            "nn",
            1,
            "I morgon, 11. mars, går sertifikatet ditt ut («likeperson»)",
            "går ut i morgon, 11. mars 2026. Du rekk framleis å fornye det.",
        ),
        (
            "en",
            14,
            "Your certificate expires on 24 March, in 14 days (“likeperson”)",
            "Your certificate “likeperson” expires on 24 March 2026. You have 14 days left to renew it.",
        ),
        (
            "en",
            0,
            "Expires today, 10 March: your certificate (“likeperson”)",
            "expires today, 10 March 2026. It is valid until the end of the day.",
        ),
    ],
)
def test_reminder_says_when(language: str, days_left: int, subject: str, sentence: str) -> None:
    """The subject has the date first, and the first sentence has it with its year."""
    message = written_reminder(locale=language, days_left=days_left)

    assert breakable(message.subject) == subject
    assert f"{sentence}\n" in breakable(message.text)


@in_each_language
def test_subject_of_a_reminder_has_its_date_within_40_characters(language: str) -> None:
    """A phone shows no more, and a mentor must not open the mail to learn the day."""
    for days_left in (60, 7, 1, 0, -1, -14):
        for day_of_year in range(366):
            expires_on = date(2028, 1, 1) + timedelta(days=day_of_year)
            message = written_reminder(locale=language, days_left=days_left, expires_on=expires_on)
            shown = breakable(message.subject)[:40]
            month = babel.dates.format_date(expires_on, "MMMM", locale=LANGUAGES[language])
            assert f"{expires_on.day}{'' if language == 'en' else '.'} {month}" in shown, message.subject


@pytest.mark.parametrize(
    ("language", "days_left", "paused", "sentence"),
    [
        ("nb", 14, False, "Hvis sertifikatet ikke er fornyet innen fristen, setter vi deg på pause."),
        ("nb", 14, True, "Du er på pause som likeperson fordi et annet av sertifikatene dine ikke lenger er gyldig."),
        ("nb", 0, False, "Hvis sertifikatet ikke blir fornyet i dag, setter vi deg på pause fra i morgen."),
        ("nb", -1, True, "Derfor har vi satt deg på pause, og du kan dessverre ikke ta oppdrag som likeperson nå."),
        ("nb", -1, False, "Uten gyldig sertifikat kan du dessverre ikke ta oppdrag som likeperson."),
        ("nn", -1, True, "Difor har vi sett deg på pause, og du kan dessverre ikkje ta oppdrag som likeperson no."),
        ("en", 0, False, "If it is not renewed today, we will pause you as a peer mentor from tomorrow."),
    ],
)
def test_reminder_says_what_the_expiry_means(*, language: str, days_left: int, paused: bool, sentence: str) -> None:
    """Who is paused, by whom, and when it ends."""
    assert sentence in written_reminder(locale=language, days_left=days_left, paused=paused).text


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("nb", "Du har kanskje fått denne "),
        ("nn", "Du har kanskje fått denne "),
        ("en", "You may have received this "),
    ],
)
def test_only_a_repeat_says_that_it_may_be_one(language: str, said: str) -> None:
    """Directly under the greeting, before the reader has read it all again."""
    assert said not in words_of(written_reminder(locale=language)) + words_of(digest(full(language)))
    for text in (written_reminder(locale=language, repeat=True).text, digest(full(language, repeat=True)).text):
        assert text.split("\n\n")[1].startswith(said)


@in_each_language
def test_a_page_is_for_everyone(language: str) -> None:
    """Headings, lists and language for screen readers, nothing fetched from elsewhere."""
    for document, headings, lists in (
        (written_reminder(locale=language).html, 2, 0),
        (digest(full(language)).html, 10, 25),
    ):
        page = Page(document)
        assert page.language == language
        assert document.count(f'lang="{language}"') >= 2  # mail programs on the web drop the html element
        assert [page.tags.count(tag) for tag in ("h1", "h2", "ul")] == [1, headings, lists]
        assert not {"img", "script", "link", "iframe"} & set(page.tags)
        layout = document.count('role="presentation"') - document.count("<!--[if mso]><table")
        assert page.tags.count("table") == layout


@in_each_language
def test_a_reminder_reads_well_on_a_phone_and_shows_where_its_links_lead(language: str) -> None:
    """What and when in 60 characters, and more in the line below; whoever fears a fraud sees the place."""
    document = written_reminder(locale=language).html
    renew, *others = "https://hlf.example/forny?a=1&b=2", "mailto:kontakt@hlf.example", "tel:+4722000000"
    assert Page(document).links == [renew, renew, *others]
    words = "Renew your certificate at" if language == "en" else "Forny sertifikatet på"
    assert f">{words} hlf.example</a>" in document
    for days_left in (60, 1, 0, -1, -14):
        september = date(2026, 9, 30)  # the longest month in all three languages
        message = written_reminder(locale=language, days_left=days_left, expires_on=september)
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
    for nothing in (None, " \x00 "):
        assert "Hei!" in written_reminder(full_name=nothing).text.splitlines()
    without_kind = written_reminder(kind="")
    assert breakable(without_kind.subject) == "Sertifikatet ditt går ut 24. mars, om 14 dager"
    assert "Sertifikatet ditt går ut 24. mars 2026." in breakable(without_kind.text)
    for language in LANGUAGES:
        message = written_reminder(locale=language, **NOWHERE)
        assert (message.text.count("HLF Øst"), "None" in words_of(message)) == (4, False)
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
        assert (contact in page.text, contact in message.text) == (True, True)
        assert invitation not in words_of(message)
        assert not any(link.startswith("mailto:") for link in page.links)
    assert invitation in written_reminder().text


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read(*, dark: bool) -> None:
    """In both palettes, and these are two. Where a mail program drops the head, the light one is on the elements."""
    pages = [written_reminder().html, *(digest(words).html for words in sample_digests("nb"))]

    found = [each for page in pages for each in contrasts(page, dark=dark)]

    assert [(colour, ground, text) for ratio, colour, ground, text in found if ratio < AA] == []
    grounds = {ground for _, _, ground, _ in found}
    assert ("#16181c" in grounds, "#ffffff" in grounds) == (dark, not dark)
    bare = re.sub(r"(?s)<style>.*</style>", "", pages[0])
    assert list(contrasts(bare, dark=dark)) == list(contrasts(pages[0], dark=False))


NO_ADDRESS = {
    "nb": "E\u2011postadressen mangler. Legg den inn i appen, så sender vi påminnelsen.",
    "nn": "E\u2011postadressa manglar. Legg inn adressa i appen, så sender vi påminninga.",
    "en": "The email address is missing. Enter it in the app, and we will send the reminder.",
}
ENDS = {"nb": (" går ut ", " gikk ut "), "nn": (" går ut ", " gjekk ut "), "en": (" expires on ", " expired on ")}


@in_each_language
def test_digest_says_each_cause_once_with_what_to_do(language: str) -> None:
    """The mentors stand under it, so that an outage with 25 mentors takes two sentences."""
    for days_left, verb in zip((0, -1), ENDS[language], strict=True):
        words = only("undelivered", 2, language=language, days_left=days_left, cause="no_address")
        message = digest(words)
        assert message.text.count(NO_ADDRESS[language]) == message.html.count(NO_ADDRESS[language]) == 1
        assert message.text.count(f"{verb}{words['undelivered'][0]['expires_on']}\n") == 2


@in_each_language
def test_digest_groups_certificates_that_end_on_one_day(language: str) -> None:
    """One line for each day. The kind is shown only if there are several kinds."""
    one_kind = digest(only("expiring", 2, language=language))
    words = full(language)
    two_kinds = digest(words | {"expiring": [words["expiring"][0] | {"kind": kind} for kind in ("a", "b")]})

    assert one_kind.text.count("12") == 2, "the day and the days left, once each"
    assert "likeperson»" not in one_kind.text
    assert "likeperson”" not in one_kind.text
    for kind in ("«a»", "«b»") if language != "en" else ("“a”", "“b”"):
        assert kind in two_kinds.text


@in_each_language
def test_digest_marks_what_is_urgent_and_nothing_else(language: str) -> None:
    """Urgent is where someone without a valid certificate may still be visible."""
    message = digest(full(language))
    quiet = digest(full(language, urgent=[]))

    assert f"\n{URGENT[language]}: " in message.text
    assert message.html.count(f">{URGENT[language]}</span>") == len(full(language)["urgent"])
    assert URGENT[language] not in words_of(quiet)


@in_each_language
def test_digest_links_to_the_app(language: str) -> None:
    """With a button and with the address. Without one there is no link."""
    message = digest(full(language, app_url="https://app.example/"))

    assert ": https://app.example/\n" in message.text
    assert Page(message.html).links == ["https://app.example/"] * 2
    assert Page(digest(full(language, app_url="")).html).links == []


@in_each_language
def test_digest_names_the_address_of_the_operators(language: str) -> None:
    """In brackets, where one is set."""
    assert "(drift@example.org)" in digest(only("unreviewed", language=language)).text
    assert "()" not in digest(only("unreviewed", language=language) | {"operator_address": ""}).text


@in_each_language
def test_digest_says_nothing_about_a_portal_where_there_is_none(language: str) -> None:
    """Mentors are paused, and nobody can be visible."""
    words = full(language, has_portal=False, urgent=[], visible=[], hidden=[])
    held = [row for row in words["held"] if row["what"] != "portal"]
    assert "portal" not in words_of(digest(words | {"held": held})).lower()


@pytest.mark.parametrize(
    ("language", "section", "one", "two"),
    [
        ("nb", "not_run", "Haster: ingen kontroll siden 31. januar", "Haster: ingen kontroll siden 31. januar"),
        ("nb", "held", "Haster: 33 endringer må avklares", "Haster: 66 endringer må avklares"),
        (
            "nb",
            "unreviewed",
            "Haster: sertifikatene til 1 er ikke kontrollert",
            "Haster: sertifikatene til 2 er ikke kontrollert",
        ),
        (
            "nb",
            "visible",
            "Haster: 1 kan fortsatt være synlig på portalen",
            "Haster: 2 kan fortsatt være synlige på portalen",
        ),
        ("nb", "paused", "1 ny på pause", "2 nye på pause"),
        ("nb", "returned", "1 er ikke lenger på pause", "2 er ikke lenger på pause"),
        ("nb", "uncertified", "1 likeperson mangler sertifikat", "2 likepersoner mangler sertifikat"),
        ("nn", "undelivered", "1 påminning kom ikkje fram", "2 påminningar kom ikkje fram"),
        ("en", "expiring", "1 certificate expires within 30 days", "2 certificates expire within 30 days"),
    ],
)
def test_subject_of_a_digest_has_the_first_section(language: str, section: str, one: str, two: str) -> None:
    """The message comes before the organisation. One and several are different words."""
    for count, what in enumerate((one, two), start=1):
        subject = breakable(digest(only(section, count, language=language)).subject)
        assert subject == f"{what} (Hørselshjelpen)"


def test_a_long_list_says_how_many_more_there_are() -> None:
    """A mentor without a name is one number and not two."""
    for language, more in (("nb", "og 1 til"), ("nn", "og 1 til"), ("en", "and 1 more")):
        message = digest(only("paused", 26, language=language))
        assert message.text.count("\n* ") == 26
        assert f"\n* {more}\n" in message.text
        assert f"<li>{more}</li>" in message.html
        assert f", {more}\n" in digest(only("expiring", 26, language=language)).text
    message = digest(full("nb"))
    assert "\n* M1002, er fortsatt på pause av en annen grunn\n" in message.text
    assert "M1002 (M1002)" not in words_of(message)


def test_preheader_of_one_section_is_its_action_and_names_nobody() -> None:
    """It shows on a locked screen."""
    page = Page(digest(only("visible")).html)
    assert page.preheader.strip().startswith("Disse skal ikke vises på portalen")
    assert "Nordmann" not in page.preheader
