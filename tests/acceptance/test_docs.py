"""The documents are held to the code: what exists is described, what is described exists."""

import re
import shlex
from pathlib import Path

import pytest

from certjob.settings import Settings
from tests.support.command_line import commands
from tests.support.docs import DOCUMENTS, PAGES, ROOT, read, read_all_examples, read_section

NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
TEXTS = {name: read(name) for name in NAMES}
JOBS = ["crontab.example"]


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_is_in_both_tables(command: str) -> None:
    """README's, a line each, and that of the page with all options."""
    assert f"`{command}" in read_section("README.md", "Commands")
    assert f"| `{command}" in TEXTS["docs/commands.md"]


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_option_is_on_the_page_about_commands(command: str) -> None:
    """In the command's row, in the table for all commands, or in the section of its own that its row links to."""
    page = "docs/commands.md"
    (row,) = [line for line in TEXTS[page].splitlines() if line.startswith(f"| `{command}")]
    text = row + read_section(page, "Options of every command")
    if command == "certjob load":
        text += read_section(page, "Loading files")

    assert {option for option in commands()[command] if option not in text} == set()


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_on_the_page_about_settings(name: str) -> None:
    """By its variable's name, in the table."""
    rows = [line for line in TEXTS["docs/settings.md"].splitlines() if line.startswith("| ")]

    assert any(f"`CERTJOB_{name.upper()}`" in row.split(" | ")[0] for row in rows)


@pytest.mark.parametrize("name", [*NAMES, *JOBS])
def test_no_document_names_a_setting_that_does_not_exist(name: str) -> None:
    """A variable in the text is one that is read, or the tests' own."""
    named = set(re.findall(r"CERTJOB_([A-Z_]+)", read(name))) - {"TEST_DATABASE_URL", "ENV_FILE"}

    assert named == {field.upper() for field in Settings.model_fields} & named


@pytest.mark.parametrize("document", [*NAMES, *JOBS])
def test_commands_and_options_in_the_documents_exist(document: str) -> None:
    """Whatever follows the word certjob in an example can be typed."""
    known = commands()
    text = re.sub(r"^    certjob [a-z ]+: .*$", "", read(document), flags=re.MULTILINE)  # a reply
    examples = re.findall(r"(?:`|^    (?:\$ )?|^[^#\n]*bin/)(certjob [a-z][^`\n#|]*)", text, flags=re.MULTILINE)
    assert examples or document not in {"README.md", "docs/commands.md", *JOBS}
    for found in examples:
        example = found.rstrip("'") if found.count("'") % 2 else found  # in a line of the shell's own
        words = shlex.split(example.replace("\\", " "))
        name = next((name for name in sorted(known, key=len, reverse=True) if example.startswith(name)), None)
        assert name is not None, example
        for word in words:
            option = word.partition("=")[0]
            if option.startswith("--"):
                assert option in known[name] | {"--help"}, example


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    """To a file that is there, and to a title in it as GitHub makes anchors: small letters, no punctuation, dashes."""
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        file, _, anchor = link.partition("#")
        if file.startswith("https://"):
            continue
        target = ((ROOT / name).parent / file).resolve() if file else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)

    assert broken == []


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_readme_is_short_and_lists_every_page() -> None:
    """At most 200 lines, so that it is read; each page under docs has its row under "Where to read on"."""
    listed = re.findall(
        r"^\| \[[^]]+\]\(docs/([^)]+)\)", read_section("README.md", "Where to read on"), flags=re.MULTILINE
    )

    assert len(TEXTS["README.md"].splitlines()) <= 200
    assert sorted(listed) == sorted(page.name for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_begins_with_whom_it_is_for(page: Path) -> None:
    """A title, then the sentence."""
    title, _, paragraph, *_ = page.read_text().splitlines()

    assert title.startswith("# ")
    assert paragraph.startswith("For "), paragraph


def test_titles_with_examples_differ() -> None:
    """An example's scene is found by the title above it."""
    titles = [title for text in TEXTS.values() for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)]
    with_examples = {example.heading for example in read_all_examples()}

    assert {title for title in with_examples if titles.count(title) > 1} == set()


def test_every_code_of_the_edge_function_is_in_its_contract() -> None:
    """With its HTTP status; and no code that the function does not have."""
    source = read("supabase/functions/hlf-dynamics-sync/refusal.ts")
    codes = re.findall(r"^  ([a-z_]+): (\d{3}),$", source, flags=re.MULTILINE)
    rows = re.findall(
        r"^\| (\d{3}) \| `([a-z_]+)` \|", read_section("docs/edge-function.md", "Contract"), flags=re.MULTILINE
    )

    assert codes
    assert sorted((status, code) for code, status in codes) == sorted(rows)


def test_every_file_that_the_readme_sends_a_reader_to_exists() -> None:
    """In the table "Where would I change …"; a star stands for languages."""
    table = read_section("README.md", "Layout").partition("| where would I change")[2]
    files = [file for file in re.findall(r"`([^`]+)`", table) if "/" in file]

    assert len(files) >= 5
    assert [file for file in files if not list(ROOT.glob(file))] == []


def test_every_package_has_its_line_in_the_layout() -> None:
    """A newcomer finds each room."""
    layout = read_section("README.md", "Layout")
    for package in sorted((ROOT / "certjob").iterdir()):
        if package.is_dir() and (package / "__init__.py").exists():
            assert f"      {package.name}/ " in layout, package.name
        elif package.suffix == ".py" and not package.name.startswith("__"):
            assert package.name in layout


@pytest.mark.parametrize("name", NAMES)
def test_no_document_keeps_the_marks_of_a_merge(name: str) -> None:
    """Both sides of a conflict stood in the table of settings."""
    assert not re.search(r"^(<{7}|={7}|>{7})", TEXTS[name], flags=re.MULTILINE)
