"""A programme's own templates: which file is used, and which errors are found before a run."""

import re
from pathlib import Path
from typing import Any

import pytest

from certjob.errors import TemplateError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.templates import OUR_FOLDER, Templates
from tests.conftest import Certjob
from tests.mail.conftest import Mailing
from tests.mail.written import written_reminder
from tests.support.command_line import today
from tests.support.facts import TODAY
from tests.support.samples import SAMPLES

GOOD_TEXT = "Hallo fra {{ organisation }}\n\nKjære {{ name }}, {{ days_left }} dager igjen.\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder of templates."""
    path = tmp_path / "templates"
    path.mkdir()
    return path


def write(folder: Path, name: str, text: str | bytes) -> None:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def reminder(templates: Path | Templates, **words: Any) -> OutgoingMessage:
    """Return a reminder, and raise the error of a broken template."""
    templates = templates if isinstance(templates, Templates) else Templates(templates)
    message = written_reminder(templates=templates, **words)
    if templates.broken is not None:
        raise templates.broken
    return message


def test_file_replaces_only_certjobs_file_of_its_name(folder: Path) -> None:
    """A byte-order mark is not part of the subject. A file that changes during a run is not read again."""
    write(folder, "reminder.nb.txt", "\ufeff" + GOOD_TEXT)
    templates = Templates(folder)

    message = reminder(templates)
    write(folder, "reminder.nb.txt", "{{ half a templ")

    assert (message.subject, message.text) == ("Hallo fra HLF Øst", "Kjære Kari Nordmann, 14 dager igjen.\n")
    assert "Oppgi gjerne medlemsnummeret ditt, M1001." in message.html
    assert reminder(templates) == message


def test_template_can_include_certjobs_and_differ_by_organisation(folder: Path) -> None:
    course = '{% if organisation == "HLF Øst" %}Neste kurs er i mars.\n{% endif %}'
    write(folder, "reminder.nb.txt", '{% include "certjob/reminder.txt" %}\n' + course)

    own, other = (reminder(folder, organisation_name=name) for name in ("HLF Øst", "HLF Vest"))

    assert (own.subject, own.text) == (written_reminder().subject, f"{written_reminder().text}Neste kurs er i mars.\n")
    assert other.text == written_reminder(organisation_name="HLF Vest").text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Emne\n\nHei {{ nmae }}\n", "line 3: 'nmae' is undefined; did you mean name?"),
        ("Emne\n\n{{ velkomst }}\n", "line 3: 'velkomst' is undef.*; use one of contact_email, "),
        ("\n\nHei\n", "line 1.*subject.*empty"),
        ("Emne\nog mer emne\n\nHei\n", "line 2.*one line"),
        ("Emne\n\n{{ days_left / 0 }}\n", "line 3: ZeroDivisionError"),
        ("Emne\n\n{{ name.__class__.__mro__ }}\n", "line 3: SecurityError"),
        ('Emne\n\n{% include "footer.txt" %}\n', "line 3: there is no template"),
    ],
)
def test_template_that_fails_with_a_message_is_named(text: str, said: str, folder: Path) -> None:
    """The error has the file, the line and the next step."""
    write(folder, "reminder.nb.txt", text)

    with pytest.raises(TemplateError, match=f"^reminder.nb.txt {said}"):
        reminder(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("reminder.nn.txt", "Emne\n\nSpørsmål\n".encode("latin-1"), ": the file is not in UTF-8; save it in that"),
        ("layout.html", b"{% block content %}", " line 1"),
        ("digest.nb.words", b"{% macro m() %}", " line 1"),
    ],
)
def test_broken_syntax_is_found_before_a_run(name: str, text: bytes, said: str, folder: Path) -> None:
    """The backup file of an editor is not read."""
    write(folder, name, text)
    write(folder, "reminder.nb.txt~", "{{ half")

    (problem,) = map(str, Templates(folder).find_errors())

    assert problem.startswith(f"{name}{said}")


def test_unreadable_folder_is_replaced_by_certjobs_templates(folder: Path) -> None:
    """The report names it. A link to itself stands for missing permissions, because root can enter every folder."""
    (folder / "loop").symlink_to("loop")
    said = f"the folder {folder / 'loop'} cannot be read (Too many levels of symbolic links)"
    templates = Templates(folder / "loop")

    assert [written_reminder(templates=templates) for _ in range(2)] == [written_reminder()] * 2

    problem = templates.problem()
    assert problem is not None
    assert said in problem.reason
    assert problem.reason.endswith("; 2 messages were written with certjob's own template instead")
    with pytest.raises(TemplateError, match=re.escape(said)):
        list(templates.find_errors())
    with pytest.raises(TemplateError, match="nowhere cannot be read"):
        list(Templates(folder / "nowhere").find_errors())


@pytest.mark.parametrize(
    "line",
    ["{{ {'a': 1}[name|upper] }}", "{{ {'a': 1}[name|reverse] }}", "{% include name %}", "{{ member_no.no_such }}"],
)
def test_error_with_a_mentors_data_does_not_contain_them(folder: Path, line: str) -> None:
    """In no form into which a template has converted a name."""
    write(folder, "reminder.nb.txt", f"Emne\n\nHei\n{line}\n")

    with pytest.raises(TemplateError) as raised:
        reminder(folder, full_name="Kari Nordmann", member_no="Q7788")

    assert (raised.value.file, raised.value.line) == ("reminder.nb.txt", 4)
    assert not any(part in str(raised.value).lower() for part in ("kari", "nordmann", "nnam", "q7788"))


@pytest.mark.parametrize("message", sorted(SAMPLES))
def test_comment_of_a_template_names_every_variable(message: str) -> None:
    """And no other, also of the entries in a list."""
    comment = (OUR_FOLDER / f"{message}.txt").read_text(encoding="utf-8").partition("#}")[0]
    paragraph = comment.partition(f"A {message} has")[2].partition("\n\n")[0]

    words = set(re.findall(r"'(\w+)':", str(next(SAMPLES[message]("nb")))))
    assert words == set(re.findall(r"`(\w+)`", paragraph)) - {"subject"}


def test_broken_template_does_not_stop_a_run(here: Certjob, mailing: Mailing, folder: Path, tmp_path: Path) -> None:
    """The run sends certjob's own text, names the file and exits with 3. The preview exits with 2."""
    mailing.certified(until=(today() - TODAY).days + 20, member_no="M1042")
    settings = {"CERTJOB_TEMPLATES_DIR": str(folder), "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}"}
    write(folder, "reminder.nb.txt", GOOD_TEXT)
    assert "\nSubject: Hallo fra NHF\n" in here("preview", "M1042", **settings).stdout
    write(folder, "reminder.nb.txt", "Emne\n\nHei {{ nmae }}\n")
    said = "reminder.nb.txt line 3: 'nmae' is undefined; did you mean name?"

    broken = here("preview", "M1042", **settings)
    run = here("run", **settings)

    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr == f"certjob preview: {said}\n"
    assert (run.returncode, said in run.stderr) == (3, True)
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 1
