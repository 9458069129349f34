"""What a mentor reads."""

import html
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest

from certjob.mail import messages
from certjob.mail.messages import ReminderContent, RenderedMessage, render_reminder
from tests.support.facts import TODAY
from tests.support.mails import Page, breakable

IN_TWO_WEEKS = ReminderContent(
    full_name="Kari Nordmann",
    member_no="M1001",
    kind="likeperson",
    expires_on=TODAY + timedelta(days=14),
    days_left=14,
    threshold_days=14,
    pauses=True,
    paused=False,
    organisation_name="HLF Øst",
    contact_email="kontakt@hlf.example",
    contact_phone="+47 22 00 00 00",
    renewal_url="https://hlf.example/forny?a=1&b=2",
    locale="nb",
    repeat=False,
)

PAUSE_WORDS = re.compile(r"\bpause", re.IGNORECASE)


def words_of(message: RenderedMessage) -> str:
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
        ("nn", 0, "går ut i dag, 10. mars", "går ut i dag, 10. mars 2026. Det gjeld ut dagen."),
        ("nn", -1, "gjekk ut i går, 9. mars", "gjekk ut i går, 9. mars 2026."),
        ("en", 14, "expires in 14 days, on 24 March", "expires on 24 March 2026. You have 14 days left to renew it."),
        ("en", 1, "expires tomorrow, 11 March", "expires tomorrow, 11 March 2026. There is still time to renew it."),
        ("en", 0, "expires today, 10 March", "expires today, 10 March 2026. It is valid until the end of the day."),
        ("en", -3, "expired on 7 March", "expired on 7 March 2026."),
    ],
)
def test_it_says_when_in_words_of_the_language(locale: str, days_left: int, subject: str, sentence: str) -> None:
    """Subject and first sentence, before, on and after the day, with the date as people write it."""
    content = replace(
        IN_TWO_WEEKS, locale=locale, days_left=days_left, expires_on=TODAY + timedelta(days=days_left), paused=False
    )

    message = render_reminder(content)

    certificate = "Your certificate" if locale == "en" else "Sertifikatet ditt"
    kind = "“likeperson”" if locale == "en" else "«likeperson»"
    assert breakable(message.subject) == f"{certificate} {subject} ({kind})"
    assert f". {certificate} {kind} {sentence}\n" in breakable(message.text)
    assert f". {certificate} {kind} {sentence} " in Page(message.html).text


@pytest.mark.parametrize("locale", ["nb", "nn", "en"])
@pytest.mark.parametrize("days_left", [14, 1, 0, -1])
@pytest.mark.parametrize("pauses", [True, False])
@pytest.mark.parametrize("paused", [True, False])
@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("places", [True, False])
def test_both_parts_say_the_same(
    *, locale: str, days_left: int, pauses: bool, paused: bool, repeat: bool, places: bool
) -> None:
    """Whoever reads the text part misses nothing, and nobody reads more than the others."""
    content = replace(
        IN_TWO_WEEKS, locale=locale, days_left=days_left, pauses=pauses, paused=paused, repeat=repeat, full_name="Kari"
    )
    if not places:
        content = replace(content, contact_email=None, contact_phone=None, renewal_url=None)

    message = render_reminder(content)

    words = re.sub(r"^-+$", "", message.text, flags=re.MULTILINE)  # they mark the headings
    if places:
        words = words.replace(f":\n{content.renewal_url}", f"\n{content.renewal_url}")
    assert Page(message.html).text == breakable(f"HLF Øst {message.subject} {' '.join(words.split())}")
    assert "\n\n\n" not in message.text
    assert message.text.endswith("\nHLF Øst\n")


@pytest.mark.parametrize("days_left", [30, 0, -1])
@pytest.mark.parametrize("locale", ["nb", "nn", "en"])
@pytest.mark.parametrize("paused", [True, False])
def test_no_word_of_a_pause_for_optional_kinds(*, days_left: int, locale: str, paused: bool) -> None:
    """The expiry of such a kind pauses nobody, so the message must not frighten."""
    message = render_reminder(
        replace(IN_TWO_WEEKS, days_left=days_left, locale=locale, paused=paused, pauses=False, kind="kurs")
    )

    assert not PAUSE_WORDS.search(words_of(message))


@pytest.mark.parametrize(
    ("locale", "days_left", "paused", "sentence"),
    [
        ("nb", 14, False, "tar du pause fra oppdragene til det er på plass."),
        ("nb", 14, True, "Du er på pause nå fordi et annet sertifikat ikke lenger er gyldig."),
        ("nb", -1, True, "Derfor er du på pause nå, og du kan dessverre ikke ta oppdrag som likeperson."),
        ("nb", -1, False, "Uten gyldig sertifikat kan du dessverre ikke ta oppdrag som likeperson."),
        ("nn", 14, False, "tek du pause frå oppdraga til det er på plass."),
        ("nn", 14, True, "Du er på pause no fordi eit anna sertifikat ikkje lenger er gyldig."),
        ("nn", -1, True, "Difor er du på pause no, og du kan dessverre ikkje ta oppdrag som likeperson."),
        ("nn", -1, False, "Utan gyldig sertifikat kan du dessverre ikkje ta oppdrag som likeperson."),
        ("en", 0, False, "your work as a peer mentor will be paused until you have a valid certificate."),
        ("en", 14, True, "paused because another of your certificates is no longer valid."),
        ("en", -1, True, "Your work as a peer mentor is therefore paused."),
        ("en", -1, False, "You cannot take on peer mentoring until you have a valid certificate."),
    ],
)
def test_it_says_what_the_expiry_means_for_the_mentor(
    *, locale: str, days_left: int, paused: bool, sentence: str
) -> None:
    """Paused already, about to be, or simply not allowed to meet people."""
    message = render_reminder(replace(IN_TWO_WEEKS, locale=locale, days_left=days_left, paused=paused))

    assert sentence in message.text


@pytest.mark.parametrize(
    ("locale", "line"),
    [
        ("nb", "Har du allerede fått denne påminnelsen? Da kan du se bort fra denne."),
        ("nn", "Har du alt fått denne påminninga? Då kan du sjå bort frå denne."),
        ("en", "You may already have received this reminder. If so, please ignore this copy."),
    ],
)
def test_only_a_repeat_says_that_it_may_be_one(locale: str, line: str) -> None:
    """The line of the design, in the mentor's language."""
    once = render_reminder(replace(IN_TWO_WEEKS, locale=locale))
    again = render_reminder(replace(IN_TWO_WEEKS, locale=locale, repeat=True))

    assert line not in words_of(once)
    assert line in again.text
    assert line in Page(again.html).text


@pytest.mark.parametrize("locale", ["se", "NN", ""])
def test_a_language_without_templates_reads_bokmaal(locale: str) -> None:
    """The page says the language that it is in, for those who let it be read aloud."""
    message = render_reminder(replace(IN_TWO_WEEKS, locale=locale))

    assert message.subject == render_reminder(IN_TWO_WEEKS).subject
    assert Page(message.html).language == "nb"


@pytest.mark.parametrize("locale", sorted(messages.LANGUAGES))
def test_the_page_is_for_everyone(locale: str) -> None:
    """Headings and language for screen readers; nothing that is fetched from elsewhere or watches the reader."""
    document = render_reminder(replace(IN_TWO_WEEKS, locale=locale)).html
    page = Page(document)

    assert page.language == locale
    assert document.count(f'lang="{locale}"') == 2  # mail programs on the web drop the html element
    assert page.tags.count("h1") == 1
    assert page.tags.count("h2") == 2
    assert not {"img", "script", "link", "iframe"} & set(page.tags)
    assert page.tags.count("table") == document.count('role="presentation"') - document.count("<!--[if mso]><table")
    assert page.links == [*["https://hlf.example/forny?a=1&b=2"] * 2, "mailto:kontakt@hlf.example", "tel:+4722000000"]


def test_markup_in_names_is_text() -> None:
    """A name is data in the HTML part, and untouched in the text part."""
    message = render_reminder(
        replace(
            IN_TWO_WEEKS,
            full_name="<b>Kari</b> & Ola",
            kind="<i>",
            organisation_name="<script>alert(1)</script>",
            contact_email='"><img src=x>@hlf.example',
            member_no="{{ 7 * 7 }}",
        )
    )

    page = Page(message.html)
    assert not {"b", "i", "script", "img"} & set(page.tags)
    assert "<b>Kari</b> & Ola" in page.text
    assert "Hei, <b>Kari</b> & Ola!" in message.text
    assert "{{ 7 * 7 }}" in message.text


@pytest.mark.parametrize("locale", sorted(messages.LANGUAGES))
@pytest.mark.parametrize("days_left", [60, 1, 0, -1, -14])
def test_a_phone_shows_the_whole_subject(locale: str, days_left: int) -> None:
    """What and when comes first and takes 60 characters at most; only what the certificate is for may be cut off."""
    september = date(2026, 9, 30)  # the longest month in all three languages
    content = replace(IN_TWO_WEEKS, locale=locale, days_left=days_left, expires_on=september)

    subject = render_reminder(content).subject

    assert len(subject.partition(" (")[0]) <= 60


def test_a_day_that_is_far_away_has_its_year_in_the_subject() -> None:
    """A threshold may be years long; a day and a month alone would be misread."""
    content = replace(IN_TWO_WEEKS, days_left=400, expires_on=TODAY + timedelta(days=400), kind="")

    assert breakable(render_reminder(content).subject) == "Sertifikatet ditt går ut om 400 dager, 14. april 2027"


@pytest.mark.parametrize("locale", sorted(messages.LANGUAGES))
@pytest.mark.parametrize("days_left", [60, 1, 0, -1])
def test_what_belongs_together_is_not_torn(locale: str, days_left: int) -> None:
    """Neither a day from its month, nor a number from its unit; not in the subject either."""
    message = render_reminder(replace(IN_TWO_WEEKS, locale=locale, days_left=days_left))

    assert not re.search(r"\d\.? (?:mars|March|dag|days)|\bE-(?:post|mail)", words_of(message), re.IGNORECASE)


@pytest.mark.parametrize("locale", sorted(messages.LANGUAGES))
@pytest.mark.parametrize("days_left", [60, 1, 0, -1])
def test_a_list_of_messages_shows_more_than_the_subject(locale: str, days_left: int) -> None:
    """The preheader is hidden on the page and is no copy of the heading."""
    message = render_reminder(replace(IN_TWO_WEEKS, locale=locale, days_left=days_left))

    preheader = Page(message.html).preheader
    assert preheader
    assert preheader not in message.subject


@pytest.mark.parametrize(
    ("locale", "words"),
    [
        ("nb", "Forny sertifikatet på hlf.example"),
        ("nn", "Forny sertifikatet på hlf.example"),
        ("en", "Renew your certificate at hlf.example"),
    ],
)
def test_the_link_says_where_it_leads(locale: str, words: str) -> None:
    """Read aloud without what stands around it; and whoever fears a fraud sees the place before going there."""
    message = render_reminder(replace(IN_TWO_WEEKS, locale=locale))

    assert f">{words}</a>" in message.html
    assert f"{words}:\nhttps://hlf.example/forny?a=1&b=2\n" in message.text


def test_a_link_that_pretends_shows_the_real_place() -> None:
    """Before an @ in an address may stand whatever one likes."""
    message = render_reminder(replace(IN_TWO_WEEKS, renewal_url="https://hlf.example@elsewhere.example/"))

    assert "på elsewhere.example" in Page(message.html).text


@pytest.mark.parametrize("name", ["K" * 300, "Kari 👩‍🏫 Nordmann", 'Kari "Ea" O\'Nordmann', "קארי"])
def test_a_name_is_written_as_it_is(name: str) -> None:
    """Long, with pictures, quotes, or in another script: whole in both parts, and never in the subject."""
    message = render_reminder(replace(IN_TWO_WEEKS, full_name=name))

    assert f"Hei, {name}!" in message.text.splitlines()
    assert f"Hei, {name}!" in Page(message.html).text
    assert message.subject == render_reminder(IN_TWO_WEEKS).subject


@pytest.mark.parametrize("phone", ["spør i resepsjonen", ""])
def test_only_a_number_can_be_called(phone: str) -> None:
    """Words in the field stay words."""
    page = Page(render_reminder(replace(IN_TWO_WEEKS, contact_phone=phone)).html)

    assert phone in page.text
    assert not any(link.startswith("tel:") for link in page.links)


@pytest.mark.parametrize("contact", ["ring oss", "a@b.example?subject=x", "kåre@hlf.example"])
def test_an_answer_is_only_invited_where_it_arrives(contact: str) -> None:
    """Without an address that Reply-To can have, an answer would go to the sender, which may be read by nobody."""
    invitation = "Du kan svare på denne e\u2011posten."
    message = render_reminder(replace(IN_TWO_WEEKS, contact_email=contact))
    page = Page(message.html)

    assert contact in page.text
    assert contact in message.text
    assert invitation not in message.text + message.html
    assert not any(link.startswith("mailto:") for link in page.links)
    assert invitation in render_reminder(IN_TWO_WEEKS).text


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "data:text/html,x",
        "hlf.example/forny",
        "https://[::1",
        "https:///x",
        "javascript://hlf.example/%0aalert(1)",
    ],
)
def test_only_a_web_address_becomes_a_link(url: str) -> None:
    """Anything else that stands in the field is shown and cannot be pressed."""
    page = Page(render_reminder(replace(IN_TWO_WEEKS, renewal_url=url)).html)

    assert url in page.text
    assert not any(link.startswith(("javascript", "data", "h")) for link in page.links)


def test_control_characters_are_stripped() -> None:
    """No field can break a line, turn the text around, or reach into the headers."""
    dirty = "Kari\r\nBcc: x\x00\x1b[31m\u202e\u2028Nord\tmann"
    message = render_reminder(
        replace(
            IN_TWO_WEEKS, full_name=dirty, kind=dirty, organisation_name=dirty, renewal_url=dirty, contact_email=dirty
        )
    )

    assert breakable(message.subject).isprintable()
    assert all(line.isprintable() for line in breakable(message.text).splitlines())
    assert "Hei, Kari Bcc: x [31m Nord mann!" in message.text.splitlines()
    assert "\u202e" not in message.html


@pytest.mark.parametrize("name", [None, "", " \x00 "])
def test_without_a_name_the_greeting_has_none(name: str | None) -> None:
    """A number in its place is the coldest line there can be."""
    assert "Hei!" in render_reminder(replace(IN_TWO_WEEKS, full_name=name)).text.splitlines()


def test_without_a_kind_the_sentence_still_reads_well() -> None:
    """No empty brackets for a certificate that is only a certificate."""
    message = render_reminder(replace(IN_TWO_WEEKS, kind=""))

    assert breakable(message.subject) == "Sertifikatet ditt går ut om 14 dager, 24. mars"
    assert "Sertifikatet ditt går ut 24. mars 2026." in breakable(message.text)


@pytest.mark.parametrize("locale", sorted(messages.LANGUAGES))
def test_without_links_the_organisation_is_named(locale: str) -> None:
    """Nobody is left without a way to renew or to ask."""
    message = render_reminder(
        replace(IN_TWO_WEEKS, locale=locale, contact_email=None, contact_phone=None, renewal_url=None)
    )

    assert message.text.count("HLF Øst") == 4
    assert "None" not in words_of(message)
    assert Page(message.html).links == []


def test_a_wheel_holds_the_templates(tmp_path: Path) -> None:
    """What is installed can write messages without the checkout beside it."""
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=root,
        check=True,
        capture_output=True,
    )

    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        packed = set(wheel.namelist())

    templates = {
        *(f"{message}.{part}" for message in ("reminder", "digest") for part in ("txt", "html")),
        *(f"{message}.{language}.words" for message in ("reminder", "digest") for language in messages.LANGUAGES),
    }
    assert {f"certjob/mail/messages/{name}" for name in (*templates, "layout.html", "parts.html")} <= packed
