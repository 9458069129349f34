"""The documents are held to the code: what exists is described, what is described exists, nothing is said twice."""

import re
import shlex

from certjob.settings import Settings
from tests.support.command_line import commands
from tests.support.docs import DOCUMENTS, PAGES, ROOT, read, read_all_examples, read_section

TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in (*DOCUMENTS, ROOT / "crontab.example")}


def test_every_command_and_its_options_are_in_the_tables() -> None:
    """README's, a line each; the page's row, its table for all commands, or the section that its row links to."""
    page = "docs/commands.md"
    for_all, of_load = read_section(page, "Options of every command"), read_section(page, "Loading files")
    for command, options in commands().items():
        (row,) = [line for line in TEXTS[page].splitlines() if line.startswith(f"| `{command}")]
        text = row + for_all + (of_load if command == "certjob load" else "")

        assert f"`{command}" in read_section("README.md", "Commands")
        assert {option for option in options if option not in text} == set(), command


def test_every_setting_is_on_its_page_and_every_variable_that_is_named_is_a_setting() -> None:
    """In the table, by its variable's name; or it is the tests' own."""
    settings = {f"CERTJOB_{name.upper()}" for name in Settings.model_fields}
    rows = re.findall(r"^\| (.+?) \| ", TEXTS["docs/settings.md"], flags=re.MULTILINE)
    named = {name for text in TEXTS.values() for name in re.findall(r"CERTJOB_[A-Z_]*[A-Z]\b", text)}

    assert {name for name in settings if not any(f"`{name}`" in row for row in rows)} == set()
    assert named - settings <= {"CERTJOB_TEST_DATABASE_URL", "CERTJOB_ENV_FILE"}


def test_commands_and_options_in_the_documents_exist() -> None:
    """Whatever follows the word certjob in an example can be typed."""
    known, seen = commands(), set()
    for document, whole in TEXTS.items():
        text = re.sub(r"^    certjob [a-z ]+: .*$", "", whole, flags=re.MULTILINE)  # a reply
        for found in re.findall(r"(?:`|^    (?:\$ )?|^[^#\n]*bin/)(certjob [a-z][^`\n#|]*)", text, flags=re.MULTILINE):
            seen.add(document)
            example = found.rstrip("'") if found.count("'") % 2 else found  # in a line of the shell's own
            name = next((name for name in sorted(known, key=len, reverse=True) if example.startswith(name)), None)
            assert name is not None, example
            words = shlex.split(example.replace("\\", " "))
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert options <= known[name] | {"--help"}, example
    assert seen >= {"README.md", "docs/commands.md", "crontab.example"}


def test_every_link_leads_somewhere() -> None:
    """To a file that is there, and to a title in it as GitHub makes anchors: small letters, no punctuation, dashes."""
    broken = []
    for name, text in TEXTS.items():
        for file, anchor in re.findall(r"\]\((?!https://)([^)#]*)#?([^)]*)\)", text):
            target = (ROOT / name).parent / file if file else ROOT / name
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if anchor and target.is_file() else []
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            if not target.exists() or (anchor and anchor not in anchors):
                broken.append((name, file, anchor))

    assert broken == []


def test_the_readme_is_short_and_sends_a_reader_to_every_page_and_package() -> None:
    """At most 200 lines; in "Where would I change …" a star stands for languages; each page says for whom it is."""
    listed = re.findall(r"^\| \[[^]]+\]\(docs/([^)]+)\)", read_section("README.md", "Where to read on"), re.MULTILINE)
    layout = read_section("README.md", "Layout")
    files = [file for file in re.findall(r"`([^`]+)`", layout.partition("| where would I change")[2]) if "/" in file]
    packages = [path.parent.name for path in (ROOT / "certjob").glob("*/__init__.py")]
    modules = [path.name for path in (ROOT / "certjob").glob("[!_]*.py")]

    assert len(TEXTS["README.md"].splitlines()) <= 200
    assert sorted(listed) == sorted(page.name for page in PAGES)
    assert len(files) >= 5
    assert [file for file in files if not list(ROOT.glob(file))] == []
    assert [name for name in packages if f"      {name}/ " not in layout] == []
    assert [name for name in modules if name not in layout] == []
    for page in PAGES:
        title, _, paragraph, *_ = page.read_text().splitlines()
        assert title.startswith("# ")
        assert paragraph.startswith("For "), paragraph


def test_titles_with_examples_differ() -> None:
    """An example's scene is found by the title above it."""
    titles = [title for text in TEXTS.values() for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)]

    assert {each.heading for each in read_all_examples() if titles.count(each.heading) > 1} == set()


def test_every_code_of_the_edge_function_is_in_its_contract() -> None:
    """With its HTTP status; and no code that the function does not have."""
    source = read("supabase/functions/hlf-dynamics-sync/refusal.ts")
    codes = re.findall(r"^  ([a-z_]+): (\d{3}),$", source, flags=re.MULTILINE)
    contract = read_section("docs/edge-function.md", "Contract")
    rows = re.findall(r"^\| (\d{3}) \| `([a-z_]+)` \|", contract, flags=re.MULTILINE)

    assert codes
    assert sorted((status, code) for code, status in codes) == sorted(rows)
