"""Templates of the programme's own: which file is taken, and what is wrong with one is found before the night."""

import re
import shutil
from collections.abc import Callable
from datetime import UTC, date, timedelta
from pathlib import Path
from typing import Any

import pytest

from certjob.database import Connection
from certjob.errors import ConfigurationError, TemplateError
from certjob.mail.digest_contents import read_digest
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages import OUR_TEMPLATES, Templates, check_templates, open_templates
from certjob.mail.messages.samples import SAMPLES, sample_digests, sample_reminders
from certjob.mail.messages.templates import OUR_FOLDER
from tests.conftest import Certjob
from tests.support.docs import read_section
from tests.support.facts import TODAY, Facts
from tests.support.mails import written_reminder

GOOD_TEXT = "Hallo fra {{ organisation }}\n\nKjære {{ name }}, {{ days_left }} dager igjen.\n"
GOOD_DIGEST = "{{ organisation }}\n\n{% for item in paused %}\n* {{ item.name }}\n{% endfor %}\nHilsen\n"

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


def reminder(folder: Path | Templates, **words: Any) -> OutgoingMessage:
    return written_reminder(templates=Templates(folder) if isinstance(folder, Path) else folder, **words)


def problems_in(folder: Path) -> list[str]:
    return [str(problem) for problem in check_templates(folder)]


def test_one_file_takes_the_place_of_ours_and_no_other(folder: Path, write: Write) -> None:
    """The HTML part and the other languages stay. Notepad's byte-order mark is no part of the subject."""
    write("reminder.nb.txt", "\ufeff" + GOOD_TEXT)

    message = reminder(folder)

    assert (message.subject, message.text) == ("Hallo fra HLF Øst", "Kjære Kari Nordmann, 14 dager igjen.\n")
    assert "Oppgi gjerne medlemsnummeret ditt, M1001." in message.html
    assert reminder(folder, locale="nn") == written_reminder(locale="nn")


def test_an_organisation_has_its_own_before_those_for_all(folder: Path, write: Write) -> None:
    """By the folder with its short name; those without one share what is compiled, for a night of fifty."""
    write("reminder.nb.txt", "For alle\n\nTekst\n")
    write("hlf/reminder.nb.txt", "For HLF\n\nTekst\n")
    templates = Templates(folder)

    assert [reminder(templates, slug=slug).subject for slug in ("hlf", "other", "")] == [
        "For HLF",
        "For alle",
        "For alle",
    ]
    everybodys = templates.environment("", page=False)
    assert templates.environment("other", page=False) is everybodys
    assert templates.environment("hlf", page=False) is not everybodys


def test_a_layout_of_ones_own_serves_every_language(folder: Path, write: Write) -> None:
    """The frame of the page alone, without copying the texts."""
    write("layout.html", '<html lang="{{ language }}"><h1>{{ subject }}</h1>{% block content %}{% endblock %}</html>')

    page = reminder(folder, locale="nn").html

    assert page.startswith('<html lang="nn"><h1>')
    assert "Vennleg helsing" in page
    assert problems_in(folder) == []


def test_a_template_can_build_on_ours(folder: Path, write: Write) -> None:
    """Our whole text and a line more, instead of a copy that grows old."""
    write("reminder.nb.txt", '{% include "certjob/reminder.txt" %}\nNeste kurs er i mars.\n')

    message, ours = reminder(folder), written_reminder()

    assert message.subject == ours.subject
    assert message.text == f"{ours.text.rstrip()}\nNeste kurs er i mars.\n"


def test_a_night_is_written_in_one_voice(folder: Path, write: Write) -> None:
    """A template that is edited meanwhile counts from the next run on."""
    write("reminder.nb.txt", GOOD_TEXT)
    templates = Templates(folder)
    before = reminder(templates)
    write("reminder.nb.txt", "{{ half a templ")

    assert reminder(templates) == before


@pytest.mark.parametrize("piece", ["piece.txt", "piece.words", "piece"])
def test_markup_in_a_name_is_text_on_a_page_whatever_piece_writes_it(piece: str, folder: Path, write: Write) -> None:
    """A page may be built of pieces whose names do not end in .html. In a text part nothing is escaped."""
    write(piece, "{% macro greet(name) %}Hei, {{ name }}!{% endmacro %}{{ name }}\n")
    use = f"{{% import '{piece}' as piece with context %}}{{{{ piece.greet(name) }}}} {{% include '{piece}' %}}"
    write("reminder.nb.txt", f"Emne\n\n{use}\n")
    write("reminder.nb.html", use)

    message = reminder(folder, full_name="<b>Å & Ø</b>")

    assert message.text == "Hei, <b>Å & Ø</b>! <b>Å & Ø</b>\n"
    assert message.html == "Hei, &lt;b&gt;Å &amp; Ø&lt;/b&gt;! &lt;b&gt;Å &amp; Ø&lt;/b&gt;\n"


@pytest.mark.parametrize(
    ("name", "text", "phrases"),
    [
        ("hlf/reminder.nb.txt", "Emne\n\n{% if paused %}\nHei\n", ["line 4", "endif"]),
        ("hlf/reminder.nb.txt", "Emne\n\nHei {{ nmae }}\n", ["line 3: 'nmae' is undefined; did you mean name?"]),
        (
            "hlf/reminder.nb.txt",
            "Emne\n\n{% if days_left == 12345 %}\nHei {{ velkomst }}\n{% endif %}\nHei\n",
            ["line 4: 'velkomst' is undefined; a template can use contact_email, "],
        ),
        ("reminder.nb.txt", "Emne\n\n{{ name.upper }} {{ organisation.slug }}\n", ["line 3", "no attribute 'slug'"]),
        ("reminder.nb.txt", "\n\nHei {{ name }}\n", ["line 1", "subject", "empty"]),
        ("reminder.nb.txt", "{% if days_left < 0 %}\nEmne\n{% endif %}\n\nHei\n", ["line 1", "subject", "empty"]),
        ("reminder.nb.txt", "Emne\nog mer emne\n\nHei\n", ["line 2", "one line"]),
        ("reminder.nb.txt", "Emne\n", ["no text"]),
        ("reminder.nb.txt", "Emne\n\n{{ days_left / 0 }}\n", ["line 3", "division by zero"]),
        ("reminder.nb.txt", "Emne\n\n{{ name.__class__.__mro__ }}\n", ["line 3", "unsafe"]),
        ("reminder.nb.txt", 'Emne\n\n{% include "footer.txt" %}\n', ["line 3", "no template footer.txt"]),
        ("reminder.en.html", "<p>{{ nmae }}</p>", ["did you mean name?"]),
        ("reminder.nn.html", "  \n", ["the page is empty"]),
        ("reminder.no.txt", GOOD_TEXT, ["the languages are nb, nn, en"]),
        ("reminder.no.words", "", ["the languages are nb, nn, en"]),
        ("layout.html", "{% block content %}", ["line 1"]),
        ("HLF/reminder.nb.txt", GOOD_TEXT, ["no organisation can have that short name"]),
        ("digest.nn.txt", GOOD_DIGEST.replace("item.name", "item.nmae"), ["line 4", "no attribute 'nmae'"]),
        ("digest.nb.txt", GOOD_DIGEST.replace("in paused", "in pasued"), ["did you mean paused?"]),
        ("digest.en.txt", "Subject\n\n{{ expiring[0].name }}\n", ["line 3", "list object has no element 0"]),
        ("digest.nb.html", "<p>{{ undelivered|map(attribute='mistake')|join }}</p>", ["no attribute 'mistake'"]),
    ],
)
def test_what_is_broken_is_found_before_the_night(
    name: str, text: str, phrases: list[str], folder: Path, write: Write
) -> None:
    """With file, line, and what to do; once, although every situation was tried."""
    write(name, text)

    (problem,) = problems_in(folder)

    assert problem.startswith("HLF:" if name.startswith("HLF") else name)
    for phrase in phrases:
        assert phrase in problem


def test_a_file_in_another_encoding_is_found(folder: Path, write: Write) -> None:
    write("reminder.nn.txt", "").write_bytes("Emne\n\nSpørsmål\n".encode("latin-1"))

    (problem,) = problems_in(folder)

    assert problem == "reminder.nn.txt: the file is not in UTF-8; save it in that encoding"


def test_what_a_file_breaks_in_another_one_is_found_in_its_own(folder: Path, write: Write) -> None:
    """A layout below our pages, an organisation's piece in everybody's text, a sentence that ours takes."""
    write("hlf/layout.html", "{{ titel }}{% block content %}{% endblock %}")
    write("reminder.nn.txt", 'Emne\n\n{% include "footer.txt" %}\n')
    write("footer.txt", "Helsing\n")
    write("hlf/footer.txt", "{{ helsing }}\n")
    ours = (OUR_FOLDER / "reminder.nb.words").read_text(encoding="utf-8")
    write("reminder.nb.words", "{% set number = nam ~ 1 %}\n" + ours)

    assert {problem.partition(";")[0] for problem in problems_in(folder)} == {
        "hlf/layout.html line 1: 'titel' is undefined",
        "hlf/footer.txt line 1: 'helsing' is undefined",
        "reminder.nb.words line 1: 'nam' is undefined",
    }


def test_what_is_good_is_no_problem(folder: Path, write: Write) -> None:
    """Ours as the programme's, digests, pieces that templates include, and what editors leave behind."""
    for ours in (*OUR_FOLDER.glob("*.txt"), *OUR_FOLDER.glob("*.html"), *OUR_FOLDER.glob("*.words")):
        shutil.copy(ours, folder)
    write("digest.nb.txt", GOOD_DIGEST)
    write("hlf/digest.nn.html", "{% for item in expiring %}{{ item.days_left }}{% endfor %}<h1>{{ subject }}</h1>")
    write("Pieces/footer.txt", "Hilsen {{ organisation }}\n")
    write("reminder.nb.txt", GOOD_TEXT + '{% include "Pieces/footer.txt" %}\n')
    write("reminder.nb.txt~", "{{ half")
    write(".git/reminder.xx.txt", "{{ half")

    assert problems_in(folder) == []
    assert reminder(open_templates(folder)).text.endswith("\nHilsen HLF Øst\n")
    assert open_templates(None) is OUR_TEMPLATES


def test_several_problems_make_one_line(folder: Path, write: Write) -> None:
    """The first three, and how many more."""
    for language in ("nb", "nn", "en", "no"):
        write(f"reminder.{language}.txt", "")

    with pytest.raises(TemplateError) as raised:
        open_templates(folder)

    assert str(raised.value).startswith("CERTJOB_TEMPLATES_DIR: reminder.no.txt: nobody")
    assert "reminder.nb.txt line 1: the first line is the subject" in str(raised.value)
    assert str(raised.value).endswith("; and 1 more")
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_folder_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigurationError, match=f"CERTJOB_TEMPLATES_DIR: the folder .*{name} cannot be read"):
        open_templates(tmp_path / name)


@pytest.mark.parametrize(
    "line",
    [
        "{{ {'a': 1}[name|upper] }}",
        "{{ {'a': 1}[name|reverse] }}",
        "{% include name %}",
        "{{ raise_(name|list) }}",
        "{{ member_no.no_such }}",
        '{% include "reminder.nb.txt" %}',
    ],
)
def test_what_breaks_on_one_mentor_names_the_place_and_not_the_person(line: str, folder: Path, write: Write) -> None:
    """Its text ends in a log; whatever the template has made of a name, it is not repeated."""
    write("reminder.nb.txt", f"Emne\n\nHei\n{line} {{{{ 1 }}}}\n")

    with pytest.raises(TemplateError) as raised:
        reminder(folder, full_name="Kari Nordmann", member_no="Q7788")

    assert (raised.value.file, raised.value.line) == ("reminder.nb.txt", 4)
    assert not any(part in str(raised.value).lower() for part in ("kari", "nordmann", "nnam", "'k'", "q7788"))


def test_the_samples_are_every_situation() -> None:
    """Before, on and after the day; paused or not; optional or not; a repeat or not; with and without contacts."""
    samples = list(sample_reminders("nn"))

    assert {sample["language"] for sample in samples} == {"nn"}
    assert {sample["days_left"] for sample in samples} == {60, 1, 0, -1, -14}
    different = {tuple(s[w] for w in ("pauses", "paused", "repeat", "contact_email", "days_left")) for s in samples}
    assert len(different) == len(samples) == 80
    for word in ("name", "kind", "contact_email", "contact_phone", "renewal_url"):
        assert {bool(sample[word]) for sample in samples} == {True, False}


def test_the_made_up_digest_has_the_words_of_a_real_one(connection: Connection, facts: Facts) -> None:
    """Were there one more or less, the check would refuse good templates, or let bad ones into the night."""
    organisation = facts.organisation()
    paused, back, shown = (facts.certified_mentor(organisation, TODAY + timedelta(days=n)) for n in (-1, 400, 20))
    values = {"organisation": organisation, "paused": paused, "back": back, "shown": shown, "today": TODAY}
    for statement in (
        "INSERT INTO mentor_pauses (mentor_id, reason, actor, lifted_at, lifted_by) VALUES"
        " (%(paused)s, 'certification_expired', 'certjob', NULL, NULL),"
        " (%(back)s, 'certification_expired', 'certjob', now(), 'certjob')",
        "INSERT INTO portal_sync_events (mentor_id, visible, wanted_at) VALUES"
        " (%(paused)s, false, now() - interval '2 hours'), (%(shown)s, true, now() - interval '2 hours')",
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, last_error)"
        " VALUES (%(shown)s, 30, gen_random_uuid(), %(today)s::date + 20, 'failed', '550 unknown')",
        "INSERT INTO portal_sync_events (mentor_id, visible, status, delivered_at, corrects_portal)"
        " VALUES (%(shown)s, false, 'delivered', now(), true)",
        "INSERT INTO held_reviews (organisation_id, what, as_of, reason, mentors, may_be_shown, mentor_ids)"
        " VALUES (%(organisation)s, 'pauses', %(today)s, 'too many', 30, 1, ARRAY[%(paused)s])",
        "INSERT INTO review_problems (mentor_id, reason, as_of) VALUES (%(shown)s, 'locked', %(today)s)",
        "INSERT INTO coordinators (organisation_id, email) VALUES (%(organisation)s, 'b@example.org')",
        "INSERT INTO coordinator_digests (coordinator_id, digest_on) SELECT id, %(today)s FROM coordinators",
    ):
        connection.execute(statement.encode(), values)
    ((row_id,),) = connection.execute("SELECT id FROM coordinator_digests").fetchall()

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


def test_the_command_writes_with_them_and_refuses_broken_ones(
    certjob: Certjob, facts: Facts, folder: Path, write: Write
) -> None:
    """Exit 2 and one line, whoever's message is asked for."""
    facts.certified_mentor(facts.organisation(), date.today() + timedelta(days=20), member_no="M1042")  # noqa: DTZ011
    write("hlf/reminder.nb.txt", GOOD_TEXT)
    good = certjob("preview", "M1042", CERTJOB_TEMPLATES_DIR=str(folder))
    write("other/reminder.en.txt", "Emne\n\nHei {{ nmae }}\n")
    broken = certjob("preview", "M1042", CERTJOB_TEMPLATES_DIR=str(folder))

    assert good.returncode == 0, good
    assert "\nSubject: Hallo fra HLF\n" in good.stdout
    assert (broken.returncode, broken.stdout, broken.stderr.count("\n")) == (2, "", 1)
    assert broken.stderr.startswith("certjob preview: CERTJOB_TEMPLATES_DIR: other/reminder.en.txt line 3: 'nmae' is")


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
