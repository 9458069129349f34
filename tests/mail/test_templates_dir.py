"""A programme's own templates: which file is used, and which errors are found before a run."""

import re
from pathlib import Path
from typing import Any

import pytest

from certjob.errors import ConfigurationError, TemplateError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.checking import check_templates, open_templates
from certjob.mail.messages.samples import SAMPLES
from certjob.mail.messages.templates import Templates
from tests.conftest import Certjob
from tests.mail.conftest import Nights
from tests.mail.written import written_reminder
from tests.support.command_line import today
from tests.support.docs import read_section
from tests.support.facts import TODAY

GOOD_TEXT = "Hallo fra {{ organisation }}\n\nKjære {{ name }}, {{ days_left }} dager igjen.\n"
GOOD_DIGEST = "{{ organisation }}\n\n{% for item in paused %}\n* {{ item.name }}\n{% endfor %}\nHilsen\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder of templates."""
    path = tmp_path / "templates"
    path.mkdir()
    return path


def write(folder: Path, name: str, text: str | bytes) -> None:
    """Write a file, and create the folder in its name."""
    (folder / name).parent.mkdir(exist_ok=True)
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


def test_organisation_can_have_its_own_templates(folder: Path) -> None:
    """Templates can include certjob's."""
    write(folder, "reminder.nb.txt", '{% include "certjob/reminder.txt" %}\nNeste kurs er i mars.\n')
    write(folder, "hlf/reminder.nb.txt", "For HLF\n\nTekst\n")
    templates, ours = Templates(folder), written_reminder()

    own, shared = (reminder(templates, slug=slug) for slug in ("hlf", "other"))

    assert (own.subject, shared.subject) == ("For HLF", ours.subject)
    assert shared.text == f"{ours.text.rstrip()}\nNeste kurs er i mars.\n"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("reminder.nb.txt", "Emne\n\nHei {{ nmae }}\n", "line 3: 'nmae' is undefined; did you mean name?"),
        ("reminder.nb.txt", "Emne\n\n{{ velkomst }}\n", "line 3: 'velkomst' is undef.*; use one of contact_email, "),
        ("reminder.nb.txt", "{% if days_left < 0 %}\nEmne\n{% endif %}\n\nHei\n", "line 1.*subject.*empty"),
        ("reminder.nb.txt", "Emne\nog mer emne\n\nHei\n", "line 2.*one line"),
        ("reminder.nb.txt", "Emne\n\n{{ days_left / 0 }}\n", "line 3.*division by zero"),
        ("reminder.nb.txt", "Emne\n\n{{ name.__class__.__mro__ }}\n", "line 3.*unsafe"),
        ("reminder.nb.txt", 'Emne\n\n{% include "footer.txt" %}\n', "line 3.*no template footer.txt"),
        ("reminder.nn.html", "  \n", "the page is empty"),
        ("reminder.nn.txt", "Emne\n\nSpørsmål\n".encode("latin-1"), ": the file is not in UTF-8; save it in that"),
        ("layout.html", "{% block content %}", "line 1"),
        ("digest.nn.txt", GOOD_DIGEST.replace("item.name", "item.nmae"), "line 4.*no attribute 'nmae'"),
    ],
)
def test_broken_template_is_found_before_a_run(name: str, text: str | bytes, said: str, folder: Path) -> None:
    """The error has the file, the line and the next step, and is reported once for all situations."""
    write(folder, name, text)

    (problem,) = map(str, check_templates(folder))

    assert problem.startswith(name)
    assert re.search(said, problem)


def test_good_templates_pass(folder: Path) -> None:
    """Also beside the backup files of editors."""
    write(folder, "digest.nb.txt", GOOD_DIGEST)
    write(folder, "reminder.nb.txt", GOOD_TEXT)
    write(folder, "reminder.nb.txt~", "{{ half")

    assert reminder(open_templates(folder)).subject == "Hallo fra HLF Øst"


def test_unreadable_folder_is_replaced_by_certjobs_templates(folder: Path) -> None:
    """The report names it. A link to itself stands for missing permissions, because root can enter every folder."""
    (folder / "hlf").symlink_to("hlf")
    said = f"the folder {folder / 'hlf'} cannot be read (Too many levels of symbolic links)"
    templates = Templates(folder)

    assert [written_reminder(templates=templates) for _ in range(2)] == [written_reminder()] * 2

    problem = templates.problem()
    assert problem is not None
    assert said in problem.reason
    assert problem.reason.endswith("; 2 messages were written with certjob's own template instead")
    with pytest.raises(ConfigurationError, match=re.escape(said)):
        open_templates(folder)
    with pytest.raises(ConfigurationError, match="nowhere cannot be read"):
        open_templates(folder / "nowhere")


def test_several_errors_make_one_line(folder: Path) -> None:
    """The first one, with the number of the others, which `certjob check` names."""
    for language in ("nb", "nn", "en"):
        write(folder, f"reminder.{language}.txt", "")

    said = r"^CERTJOB_TEMPLATES_DIR: reminder.nb.txt line 1: .* empty; and 2 more problems; `certjob check` says"
    with pytest.raises(TemplateError, match=said):
        open_templates(folder)


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


def test_sample_reminders_cover_every_situation() -> None:
    """Before, on and after the day; with and without each fact."""
    samples = list(SAMPLES["reminder"]("nn"))

    assert {sample["days_left"] for sample in samples} == {60, 1, 0, -1, -14}
    for word in ("pauses", "paused", "repeat", "name", "kind", "contact_email", "contact_phone", "renewal_url"):
        assert {bool(sample[word]) for sample in samples} == {True, False}


@pytest.mark.parametrize("message", sorted(SAMPLES))
def test_messages_page_names_every_variable(message: str) -> None:
    """And no other, also of the entries in a list."""
    section = read_section("docs/messages.md", "Your own templates")
    paragraph = section.partition(f"A {message} has")[2].partition("\n\n")[0]

    words = set(re.findall(r"'(\w+)':", str(next(SAMPLES[message]("nb")))))
    assert words == set(re.findall(r"`(\w+)`", paragraph)) - {"subject"}


def test_broken_template_does_not_stop_a_run(here: Certjob, nights: Nights, folder: Path, tmp_path: Path) -> None:
    """The run sends certjob's own text, names the file and exits with 3. The preview exits with 2."""
    nights.certified(until=(today() - TODAY).days + 20, member_no="M1042")
    settings = {"CERTJOB_TEMPLATES_DIR": str(folder), "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}"}
    write(folder, "nhf/reminder.nb.txt", GOOD_TEXT)
    assert "\nSubject: Hallo fra NHF\n" in here("preview", "M1042", **settings).stdout
    write(folder, "nhf/reminder.nb.txt", "Emne\n\nHei {{ nmae }}\n")
    said = "nhf/reminder.nb.txt line 3: 'nmae' is undefined; did you mean name?"

    broken = here("preview", "M1042", **settings)
    run = here("run", **settings)

    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr == f"certjob preview: CERTJOB_TEMPLATES_DIR: {said}\n"
    assert (run.returncode, said in run.stderr) == (3, True)
    assert len(list((tmp_path / "mail" / "new").iterdir())) == 1
