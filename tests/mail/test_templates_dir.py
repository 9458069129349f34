"""Templates of the programme's own: which file is taken, and what is wrong with one is found before the night."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, timedelta
from pathlib import Path

import pytest

from certjob.database import Connection
from certjob.errors import ConfigurationError, TemplateError
from certjob.mail.digest_contents import read_digest
from certjob.mail.messages import (
    OUR_TEMPLATES,
    ReminderContent,
    RenderedMessage,
    Templates,
    check_templates,
    open_templates,
    render_reminder,
)
from certjob.mail.messages.samples import SAMPLES, sample_digests, sample_reminders
from certjob.mail.messages.templates import OUR_FOLDER
from tests.conftest import Certjob
from tests.support.docs import read_section
from tests.support.facts import TODAY, Facts

CONTENT = replace(next(sample_reminders(language="nb", slug="hlf")), full_name="Kari Nordmann", paused=False)
GOOD_TEXT = "Hallo fra {{ organisation }}\n\nKjære {{ name }}, {{ days_left }} dager igjen.\n"

Write = Callable[[str, str], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder of templates."""
    path = tmp_path / "templates"
    path.mkdir()
    return path


@pytest.fixture
def write(folder: Path) -> Write:
    """Put a file into the folder, below a folder of an organisation if its name has one."""

    def write_file(name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def render_reminder_with(templates: Templates, content: ReminderContent) -> RenderedMessage:
    return render_reminder(content, templates=templates)


def problems_in(folder: Path) -> list[str]:
    return [str(problem) for problem in check_templates(folder)]


class TestChoice:
    """File by file, the most particular one."""

    def test_one_file_takes_the_place_of_ours_and_no_other(self, folder: Path, write: Write) -> None:
        """The HTML part and the other languages stay."""
        write("reminder.nb.txt", GOOD_TEXT)
        templates = Templates(folder)

        message = render_reminder_with(templates, CONTENT)

        assert message.subject == "Hallo fra Hørselshjelpen"
        assert message.text == "Kjære Kari Nordmann, 60 dager igjen.\n"
        assert "<h1" in message.html
        assert "Oppgi gjerne medlemsnummeret ditt, M1001." in message.html
        nynorsk = replace(CONTENT, locale="nn")
        assert render_reminder_with(templates, nynorsk) == render_reminder_with(OUR_TEMPLATES, nynorsk)

    def test_an_organisation_has_its_own_before_those_for_all(self, folder: Path, write: Write) -> None:
        """By the folder with its short name."""
        write("reminder.nb.txt", "For alle\n\nTekst\n")
        write("hlf/reminder.nb.txt", "For HLF\n\nTekst\n")
        templates = Templates(folder)

        subjects = {
            slug: render_reminder_with(templates, replace(CONTENT, organisation_slug=slug)).subject
            for slug in ("hlf", "other", "")
        }

        assert subjects == {"hlf": "For HLF", "other": "For alle", "": "For alle"}

    def test_organisations_without_a_folder_share_what_is_compiled(self, folder: Path, write: Write) -> None:
        """A night for fifty organisations compiles the programme's texts once."""
        write("reminder.nb.txt", "For alle\n\nTekst\n")
        write("hlf/layout.html", "{% block content %}{% endblock %}")
        templates = Templates(folder)

        compiled = [
            templates.environment(slug, page=False).get_template("reminder.nb.txt")
            for slug in ("", "one", "two", "hlf", "one")
        ]

        assert [template is compiled[0] for template in compiled] == [True, True, True, False, True]

    def test_a_layout_of_ones_own_serves_every_language(self, folder: Path, write: Write) -> None:
        """The frame of the page alone, without copying the texts."""
        write(
            "layout.html", '<html lang="{{ language }}"><h1>{{ subject }}</h1>{% block content %}{% endblock %}</html>'
        )

        pages = [
            render_reminder_with(Templates(folder), replace(CONTENT, locale=locale)).html
            for locale in ("nb", "nn", "en")
        ]

        assert [page[:16] for page in pages] == [f'<html lang="{locale}">' for locale in ("nb", "nn", "en")]
        assert "Vennleg helsing" in pages[1]
        assert problems_in(folder) == []

    def test_a_template_can_build_on_ours(self, folder: Path, write: Write) -> None:
        """Our whole text and a line more, instead of a copy that grows old."""
        write("reminder.nb.txt", '{% include "certjob/reminder.txt" %}\nNeste kurs er i mars.\n')

        message = render_reminder_with(Templates(folder), CONTENT)

        ours = render_reminder_with(OUR_TEMPLATES, CONTENT)
        assert message.subject == ours.subject
        assert message.text == f"{ours.text.rstrip()}\nNeste kurs er i mars.\n".replace("  ", " ")

    def test_names_are_harmless_in_their_pages_too(self, folder: Path, write: Write) -> None:
        """What is markup in a name is text, unless the template says otherwise."""
        write("reminder.nb.html", "<p>{{ name }}</p>")

        message = render_reminder_with(Templates(folder), replace(CONTENT, full_name="<script>alert(1)</script>"))

        assert message.html == "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>"

    def test_a_byte_order_mark_is_no_part_of_the_subject(self, folder: Path, write: Write) -> None:
        """Notepad writes one."""
        write("reminder.nb.txt", "\ufeff" + GOOD_TEXT)

        assert render_reminder_with(Templates(folder), CONTENT).subject == "Hallo fra Hørselshjelpen"

    def test_a_night_is_written_in_one_voice(self, folder: Path, write: Write) -> None:
        """A template that is edited meanwhile counts from the next run on."""
        write("reminder.nb.txt", GOOD_TEXT)
        templates = Templates(folder)
        before = render_reminder_with(templates, CONTENT)
        write("reminder.nb.txt", "{{ half a templ")

        assert render_reminder_with(templates, CONTENT) == before


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("Emne\n\n{% if paused %}\nHei\n", ["line 4", "endif"]),
        ("Emne\n\nHei {{ nmae }}\n", ["line 3: 'nmae' is undefined; did you mean name?"]),
        (
            "Emne\n\n{% if days_left == 12345 %}\nHei {{ velkomst }}\n{% endif %}\nHei\n",
            ["line 4: 'velkomst' is undefined; a template can use contact_email, "],
        ),
        ("Emne\n\n{{ name.upper }} {{ organisation.slug }}\n", ["line 3", "has no attribute 'slug'"]),
        ("\n\nHei {{ name }}\n", ["line 1", "subject", "empty"]),
        ("{% if days_left < 0 %}\nEmne\n{% endif %}\n\nHei\n", ["line 1", "subject", "empty"]),
        ("Emne\nog mer emne\n\nHei\n", ["line 2", "one line"]),
        ("Emne\n", ["no text"]),
        ("Emne\n\n{{ days_left / 0 }}\n", ["line 3", "division by zero"]),
        ("Emne\n\n{{ name.__class__.__mro__ }}\n", ["line 3", "unsafe"]),
        ('Emne\n\n{% include "footer.txt" %}\n', ["line 3", "no template footer.txt"]),
        ('{% include "reminder.nb.txt" %}\n', ["RecursionError"]),
    ],
)
def test_a_broken_text_is_found_before_the_night(text: str, phrases: list[str], folder: Path, write: Write) -> None:
    """With file, line, and what to do; once, although every situation was tried."""
    write("hlf/reminder.nb.txt", text)

    problems = problems_in(folder)

    assert len(problems) == 1
    assert problems[0].startswith("hlf/reminder.nb.txt")
    for phrase in phrases:
        assert phrase in problems[0]


@pytest.mark.parametrize(
    ("name", "content", "phrase"),
    [
        ("reminder.en.html", b"<p>{{ nmae }}</p>", "did you mean name?"),
        ("reminder.nn.html", b"  \n", "the page is empty"),
        ("reminder.nn.txt", "Emne\n\nSpørsmål\n".encode("latin-1"), "UTF-8"),
        ("reminder.no.txt", GOOD_TEXT.encode(), "the languages are nb, nn, en"),
        ("reminder.no.words", b"", "the languages are nb, nn, en"),
        ("layout.html", b"{% block content %}", "layout.html line 1"),
    ],
)
def test_what_is_wrong_with_any_other_file_is_found_too(
    name: str, content: bytes, phrase: str, folder: Path, write: Write
) -> None:
    """Pages, encodings, and names that no message would ever look for."""
    write(name, "").write_bytes(content)

    problems = problems_in(folder)

    assert len(problems) == 1
    assert problems[0].startswith(name)
    assert phrase in problems[0]


GOOD_DIGEST = "{{ organisation }}\n\n{% for item in paused %}\n* {{ item.name }}\n{% endfor %}\nHilsen\n"


@pytest.mark.parametrize(
    ("name", "text", "phrases"),
    [
        ("digest.nn.txt", GOOD_DIGEST.replace("item.name", "item.nmae"), ["line 4", "no attribute 'nmae'"]),
        ("digest.nb.txt", GOOD_DIGEST.replace("in paused", "in pasued"), ["did you mean paused?"]),
        ("digest.en.txt", "Subject\n\n{{ expiring[0].name }}\n", ["line 3", "list object has no element 0"]),
        ("digest.en.txt", "Subject\n\n{% if days_left %}\n{% endif %}\n", ["'days_left' is undefined"]),
        ("digest.nb.html", "<p>{{ undelivered|map(attribute='mistake')|join }}</p>", ["no attribute 'mistake'"]),
        ("digest.no.txt", GOOD_DIGEST, ["the languages are nb, nn, en"]),
    ],
)
def test_a_broken_digest_is_found_before_the_night(
    name: str, text: str, phrases: list[str], folder: Path, write: Write
) -> None:
    """As in a reminder: with no, one, some and too many lines in each section."""
    write(name, text)

    problems = problems_in(folder)

    assert [problem.partition(" ")[0].rstrip(":") for problem in problems] == [name]
    for phrase in phrases:
        assert phrase in problems[0]


def test_a_good_digest_of_ones_own_is_none(folder: Path, write: Write) -> None:
    """For all, and for one organisation."""
    write("digest.nb.txt", GOOD_DIGEST)
    write("hlf/digest.nn.html", "{% for item in expiring %}{{ item.days_left }}{% endfor %}<h1>{{ subject }}</h1>")

    assert problems_in(folder) == []


def test_the_made_up_digest_has_the_words_of_a_real_one(connection: Connection, facts: Facts) -> None:
    """Were there one more or less, the check would refuse good templates, or let bad ones into the night."""
    organisation = facts.organisation()
    paused, back, shown = (facts.certified_mentor(organisation, TODAY + timedelta(days=n)) for n in (-1, 400, 20))
    connection.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor, lifted_at, lifted_by) VALUES"
        " (%(paused)s, 'certification_expired', 'certjob', NULL, NULL),"
        " (%(back)s, 'certification_expired', 'certjob', now(), 'certjob')",
        {"paused": paused, "back": back},
    )
    connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, wanted_at) VALUES"
        " (%(paused)s, false, now() - interval '2 hours'), (%(shown)s, true, now() - interval '2 hours')",
        {"paused": paused, "shown": shown},
    )
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, last_error)"
        " VALUES (%s, 30, gen_random_uuid(), %s, 'failed', '550 unknown')",
        (shown, TODAY + timedelta(days=20)),
    )
    connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, status, delivered_at, corrects_portal)"
        " VALUES (%s, false, 'delivered', now(), true)",
        (shown,),
    )
    connection.execute(
        "INSERT INTO held_reviews (organisation_id, what, as_of, reason, mentors, may_be_shown, mentor_ids)"
        " VALUES (%s, 'pauses', %s, 'too many', 30, 1, %s)",
        (organisation, TODAY, [paused]),
    )
    connection.execute(
        "INSERT INTO review_problems (mentor_id, reason, as_of) VALUES (%s, 'locked', %s)", (shown, TODAY)
    )
    connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'b@example.org')", (organisation,)
    )
    ((row_id,),) = connection.execute(
        "INSERT INTO coordinator_digests (coordinator_id, digest_on) SELECT id, %s FROM coordinators RETURNING id",
        (TODAY,),
    ).fetchall()

    real = read_digest(connection, row_id, today=TODAY, zone=UTC)

    assert real is not None
    assert shape(real.words(repeat=False)) == shape(next(sample_digests("nb")))


def shape(value: object) -> object:
    """The words in it, the words in the first line of each list, and what kind of thing each is."""
    match value:
        case dict():
            return {word: shape(inside) for word, inside in value.items()}
        case list():
            return [shape(value[0])]
    return type(value).__name__


@pytest.mark.parametrize("message", sorted(SAMPLES))
def test_the_page_about_messages_names_every_word(message: str) -> None:
    """What somebody who writes templates can use, and nothing else."""
    section = read_section("docs/messages.md", "Your own templates")
    paragraph = section.partition(f"A {message} has")[2].partition("\n\n")[0]

    named = set(re.findall(r"`(\w+)`", paragraph))

    assert words_in(next(SAMPLES[message]("nb"))) == named - {"subject"}


def words_in(value: object) -> set[str]:
    match value:
        case dict():
            return {*value}.union(*map(words_in, value.values()))
        case list():
            return set().union(*map(words_in, value))
    return set()


def test_a_folder_that_no_organisation_can_have_is_told(folder: Path, write: Write) -> None:
    """HLF instead of hlf: nobody would ever get these."""
    write("HLF/reminder.nb.txt", GOOD_TEXT)

    assert [problem.partition(":")[0] for problem in problems_in(folder)] == ["HLF"]


def test_pieces_and_what_editors_leave_behind_are_no_problem(folder: Path, write: Write) -> None:
    """Files that templates include, hidden ones, copies."""
    write("Pieces/footer.txt", "Hilsen {{ organisation }}\n")
    write("reminder.nb.txt", GOOD_TEXT + '{% include "Pieces/footer.txt" %}\n')
    write("reminder.nb.txt~", "{{ half")
    write(".git/reminder.xx.txt", "{{ half")

    assert problems_in(folder) == []
    assert render_reminder_with(open_templates(folder), CONTENT).text.endswith("\nHilsen Hørselshjelpen\n")


def test_ours_pass_the_check(folder: Path) -> None:
    """In every language and situation: as the programme's, since what nobody has changed is not tried again."""
    for ours in (*OUR_FOLDER.glob("*.txt"), *OUR_FOLDER.glob("*.html"), *OUR_FOLDER.glob("*.words")):
        shutil.copy(ours, folder)

    assert problems_in(folder) == []


def test_a_layout_is_tried_with_all_that_is_built_on_it(folder: Path, write: Write) -> None:
    """Our pages among them."""
    write("hlf/layout.html", "{{ titel }}{% block content %}{% endblock %}")

    problems = problems_in(folder)

    assert problems
    assert {problem.partition(";")[0] for problem in problems} == {"hlf/layout.html line 1: 'titel' is undefined"}


def test_an_organisations_piece_is_tried_in_the_programmes_text(folder: Path, write: Write) -> None:
    """The text is everybody's, the line that breaks it is in the organisation's file."""
    write("reminder.nn.txt", 'Emne\n\n{% include "footer.txt" %}\n')
    write("footer.txt", "Helsing\n")
    write("hlf/footer.txt", "{{ helsing }}\n")

    assert [problem.partition(";")[0] for problem in problems_in(folder)] == [
        "hlf/footer.txt line 1: 'helsing' is undefined"
    ]


@pytest.mark.parametrize("piece", ["piece.txt", "piece.words", "piece"])
def test_markup_in_a_name_is_text_on_a_page_whatever_piece_writes_it(piece: str, folder: Path, write: Write) -> None:
    """A page may be built of pieces whose names do not end in .html. In a text part nothing is escaped."""
    write(piece, "{% macro greet(name) %}Hei, {{ name }}!{% endmacro %}{{ name }}\n")
    use = f"{{% import '{piece}' as piece with context %}}{{{{ piece.greet(name) }}}} {{% include '{piece}' %}}"
    write("reminder.nb.txt", f"Emne\n\n{use}\n")
    write("reminder.nb.html", use)

    message = render_reminder_with(open_templates(folder), replace(CONTENT, full_name="<b>Å & Ø</b>"))

    assert message.text == "Hei, <b>Å & Ø</b>! <b>Å & Ø</b>\n"
    assert message.html == "Hei, &lt;b&gt;Å &amp; Ø&lt;/b&gt;! &lt;b&gt;Å &amp; Ø&lt;/b&gt;\n"


def test_a_sentence_that_breaks_is_found_in_its_own_file(folder: Path, write: Write) -> None:
    """Not in ours, which only takes it."""
    ours = (OUR_FOLDER / "reminder.nb.words").read_text(encoding="utf-8")
    write("reminder.nb.words", "{% set number = nam ~ 1 %}\n" + ours)

    assert problems_in(folder) == ["reminder.nb.words line 1: 'nam' is undefined; did you mean name?"]


def test_without_a_folder_ours_are_used() -> None:
    """And nothing is tried beforehand: a night with nothing to send pays for no check."""
    assert open_templates(None) is OUR_TEMPLATES


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_folder_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    """By the name of the variable."""
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match=f"CERTJOB_TEMPLATES_DIR: the folder .*{name} cannot be read"):
        open_templates(tmp_path / name)


def test_several_problems_make_one_line(folder: Path, write: Write) -> None:
    """The first three, and how many more."""
    for language in ("nb", "nn", "en"):
        write(f"reminder.{language}.txt", "")
    write("reminder.no.txt", "")

    with pytest.raises(TemplateError) as raised:
        open_templates(folder)

    assert str(raised.value).startswith("CERTJOB_TEMPLATES_DIR: reminder.no.txt: nobody")
    assert "reminder.nb.txt line 1: the first line is the subject" in str(raised.value)
    assert str(raised.value).endswith("; and 1 more")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    "line",
    [
        "{{ {'a': 1}[name] }}",
        "{{ {'a': 1}[name|upper] }}",
        "{{ {'a': 1}[name|reverse] }}",
        "{{ [][name] }}",
        "{% include name %}",
        "{{ raise_(name|list) }}",
        "{{ member_no.no_such }}",
    ],
)
def test_what_breaks_on_one_mentor_names_the_place_and_not_the_person(line: str, folder: Path, write: Write) -> None:
    """Its text ends in a log; whatever the template has made of a name, it is not repeated."""
    write("reminder.nb.txt", f"Emne\n\nHei\n{line} {{{{ 1 }}}}\n")
    content = replace(CONTENT, full_name="Kari Nordmann", member_no="Q7788")

    with pytest.raises(TemplateError) as raised:
        render_reminder_with(Templates(folder), content)

    assert (raised.value.file, raised.value.line) == ("reminder.nb.txt", 4)
    assert not any(part in str(raised.value).lower() for part in ("kari", "nordmann", "nnam", "'k'", "q7788"))


def test_the_samples_are_every_situation() -> None:
    """Before, on and after the day; paused or not; optional or not; a repeat or not; with and without contacts."""
    samples = list(sample_reminders(language="nn", slug="hlf"))

    def differ(value: Callable[[ReminderContent], object]) -> int:
        return len({value(sample) for sample in samples})

    assert {(sample.locale, sample.organisation_slug) for sample in samples} == {("nn", "hlf")}
    assert {(s.days_left > 0) - (s.days_left < 0) for s in samples} == {1, 0, -1}
    assert differ(lambda s: (s.pauses, s.paused, s.repeat, s.contact_email, s.days_left)) == len(samples) == 80


def test_the_installed_command_writes_with_them(certjob: Certjob, facts: Facts, folder: Path, write: Write) -> None:
    """CERTJOB_TEMPLATES_DIR, for one organisation."""
    facts.certified_mentor(facts.organisation(), date.today() + timedelta(days=20), member_no="M1042")  # noqa: DTZ011
    write("hlf/reminder.nb.txt", GOOD_TEXT)

    result = certjob("preview", "M1042", CERTJOB_TEMPLATES_DIR=str(folder))

    assert result.returncode == 0, result
    assert "\nSubject: Hallo fra HLF\n" in result.stdout


@pytest.mark.parametrize("text", ["Emne\n\nHei {{ nmae }}\n", None])
def test_the_installed_command_refuses_broken_ones(
    certjob: Certjob, facts: Facts, folder: Path, write: Write, text: str | None
) -> None:
    """Exit 2 and one line, whoever's message is asked for."""
    facts.certified_mentor(facts.organisation(), date.today() + timedelta(days=20), member_no="M1042")  # noqa: DTZ011
    if text:
        write("other/reminder.en.txt", text)
    place = folder if text else folder / "nowhere"

    result = certjob("preview", "M1042", CERTJOB_TEMPLATES_DIR=str(place))

    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("certjob preview: CERTJOB_TEMPLATES_DIR: ")
    assert ("other/reminder.en.txt line 3: 'nmae' is undefined" in result.stderr) == (text is not None)


@pytest.mark.parametrize("command", ["run", "deliver"])
def test_a_broken_template_stops_no_night(
    certjob: Certjob, facts: Facts, folder: Path, write: Write, tmp_path: Path, command: str
) -> None:
    """Somebody uncertified who stays visible is worse than other words: ours are sent, and the line names the file."""
    facts.certified_mentor(facts.organisation(portal=None), date.today() + timedelta(days=20))  # noqa: DTZ011
    write("reminder.nb.html", "{{ nmae }}")
    if command == "deliver":
        certjob("run", "--no-deliver")

    result = certjob(
        command,
        CERTJOB_TEMPLATES_DIR=str(folder),
        CERTJOB_NOTIFY_URL=f"maildir:{tmp_path / 'mail'}",
        CERTJOB_MAIL_FROM="certjob@example.org",
    )

    assert result.returncode == 3
    assert "reminder.nb.html line 1: 'nmae' is undefined; did you mean name?" in result.stderr
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 1
