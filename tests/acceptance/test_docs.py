"""The README's first commands run as printed, every name and link in a page exists, and the demo tells its story."""

import re
import runpy
import shlex
from typing import Any

import pytest

from certjob.database import embedded
from certjob.settings import Settings
from tests.conftest import installed_command
from tests.support.command_line import commands, on_terminal, run_in_process
from tests.support.docs import DOCUMENTS, ROOT, read_section
from tests.support.own_server import data_folder

TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in (*DOCUMENTS, ROOT / "crontab.example")}
NOT_SETTINGS = {"CERTJOB_TEST_DATABASE_URL", "CERTJOB_ENV_FILE"}


def assert_lines_in_order(printed: str, example: str) -> None:
    """Check that the output has the lines of the example, on any day; an ellipsis stands for any text."""
    lines = iter(line.rstrip() for line in printed.replace("\N{NO-BREAK SPACE}", " ").splitlines())
    for wanted in example.splitlines():
        pattern = re.escape(wanted.strip()).replace("…", ".*")
        pattern = re.sub(r"\d{4}\\-\d\d\\-\d\d", r"\\d{4}-\\d\\d-\\d\\d", pattern)
        assert any(re.fullmatch(pattern, line) for line in lines), f"{wanted}\n{printed}"


def test_first_commands_of_the_readme_run_as_printed(bare_environment: dict[str, str]) -> None:
    """In a shell on a terminal, with the installed command and the embedded database, which runs all the time."""
    section = read_section("README.md", "Five minutes")
    setup = re.findall(r"^    (.*)$", section.partition("    $ ")[0], re.MULTILINE)
    blocks = re.sub(r"\n(?=    \$)", "\n\n", section)
    examples = re.findall(r"^    \$ (.*)\n((?:    .*\n|\n(?=    (?!\$)))*)", blocks, re.MULTILINE)
    script = "\n".join([*setup, *(f'{command}; echo "exit code $?"' for command, _ in examples)])
    path = f"{installed_command().parent}:{bare_environment['PATH']}"

    with data_folder("readme") as folder, embedded.server(folder / "certjob" / "postgresql"):
        settings = {"PATH": path, "XDG_DATA_HOME": str(folder), "TERM": "dumb", "TZ": "Europe/Oslo"}
        environment = bare_environment | {"HOME": str(folder)} | settings
        _, shown = on_terminal(["-c", script], environment=environment, folder=folder, program=["/bin/sh"])

    *outputs, rest = re.split(r"^exit code (\d)\n", shown, flags=re.MULTILINE)
    assert ({*outputs[1::2]}, rest) == ({"0"}, "")
    for (_, example), printed in zip(examples, outputs[::2], strict=True):
        assert_lines_in_order(printed, example)


def test_commands_and_options_in_the_documents_exist() -> None:
    """In running text, in examples and in the crontab. The README lists every command."""
    known, seen = commands(), set()
    for document, whole in TEXTS.items():
        text = re.sub(r"^    certjob [a-z ]+: .*$", "", whole, flags=re.MULTILINE)  # a line of output
        for found in re.findall(r"(?:`|^    (?:\$ )?|^[^#\n]*bin/)(certjob [a-z][^`\n#|]*)", text, flags=re.MULTILINE):
            seen.add(document)
            example = found.rstrip("'") if found.count("'") % 2 else found  # the shell's own quotation mark
            name = next((name for name in sorted(known, key=len, reverse=True) if example.startswith(name)), None)
            assert name is not None, example
            words = shlex.split(example.replace("\\", " "))
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert options <= known[name] | {"--help"}, example
    assert seen >= {"README.md", "docs/commands.md", "crontab.example"}
    listed = re.findall(r"`(certjob [a-z-]+(?: [a-z]+)?)", read_section("README.md", "Commands"))
    assert {*listed} == known.keys()


def test_settings_in_the_documents_exist() -> None:
    """And docs/settings.md has a row for every setting."""
    settings = {f"CERTJOB_{name.upper()}" for name in Settings.model_fields}
    rows = re.findall(r"^\| (`CERTJOB_.+?) \| ", TEXTS["docs/settings.md"], flags=re.MULTILINE)
    named = {name for text in TEXTS.values() for name in re.findall(r"CERTJOB_[A-Z_]*[A-Z]\b", text)}

    assert named - settings <= NOT_SETTINGS
    assert {name for row in rows for name in re.findall(r"`(CERTJOB_[A-Z_]+)`", row)} == settings


def test_every_link_leads_to_a_file_and_a_title() -> None:
    """GitHub's anchors: small letters, no punctuation, dashes."""
    broken = []
    for name, text in TEXTS.items():
        for file, anchor in re.findall(r"\]\((?!https://)([^)#]*)#?([^)]*)\)", text):
            target = (ROOT / name).parent / file if file else ROOT / name
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor and target.is_file() else []
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            if not target.exists() or (anchor and anchor not in anchors):
                broken.append((name, file, anchor))

    assert broken == []


def test_demo_shows_a_bad_night_a_recovery_and_a_repair(
    empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands run in this process and on the tests' server, which takes a tenth of the time."""
    codes: dict[str, int] = {}
    errors: list[str] = []

    def run(story: Any, arguments: str) -> None:
        environment = story.environment | {"CERTJOB_DATABASE_URL": empty_database_url}
        result = run_in_process(*arguments.split(), environment=environment, folder=story.folder)
        codes[arguments] = max(result.returncode, codes.get(arguments, 0))
        errors.append(result.stderr)

    demo = runpy.run_path(str(ROOT / "demo/demo.py"))
    demo["Demo"].certjob = run
    assert demo["main"]() == 0

    assert {command for command, code in codes.items() if code != 0} == {"run", "alerts"}
    assert {"run --dry-run", "alerts --retry-all", "explain M1001", "reconcile"} <= codes.keys()
    why = "the portal did not answer or could not make the change"
    assert f"certjob run: 3 mentors may still be visible on the portal: {why}; see `certjob alerts`\n" in errors
    shown = capsys.readouterr().out
    differences = re.findall(r"(\d shown wrongly, \d hidden wrongly)", shown)
    assert differences == [
        "0 shown wrongly, 0 hidden wrongly",
        "3 shown wrongly, 0 hidden wrongly",
        "0 shown wrongly, 0 hidden wrongly",
        "0 shown wrongly, 0 hidden wrongly",
        "1 shown wrongly, 1 hidden wrongly",
        "0 shown wrongly, 0 hidden wrongly",
    ]
    assert re.findall(r"the portal (shows|hides) M1002", shown) == ["shows", "hides"]
    assert "| Subject: Your certificate expires on " in shown
