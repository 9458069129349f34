"""The documents are held to the code: what exists is described, what is described exists, nothing is said twice."""

import ast
import re
import shlex

import pytest

from certjob.database.statements import all_statements
from certjob.settings import Settings
from tests.support.command_line import commands
from tests.support.docs import DOCUMENTS, PAGES, ROOT, read, read_all_examples, read_section

TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in (*DOCUMENTS, ROOT / "crontab.example")}
DESIGN = TEXTS["docs/design.md"]
NAMING = {
    "docs/design.md": DESIGN.partition("\n## What was tried")[0],
    "CONTRIBUTING.md": TEXTS["CONTRIBUTING.md"].partition("\n## What the libraries do")[0],
}
"""The pages that name pieces of the code, without what names things that are not here."""


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_and_its_options_are_in_the_tables(command: str) -> None:
    """README's, a line each; the page's row, its table for all commands, or the section that its row links to."""
    page = "docs/commands.md"
    (row,) = [line for line in TEXTS[page].splitlines() if line.startswith(f"| `{command}")]
    text = row + read_section(page, "Options of every command")
    if command == "certjob load":
        text += read_section(page, "Loading files")

    assert f"`{command}" in read_section("README.md", "Commands")
    assert {option for option in commands()[command] if option not in text} == set()


def test_every_setting_is_on_its_page_and_every_variable_that_is_named_is_a_setting() -> None:
    """In the table, by its variable's name; or it is the tests' own."""
    settings = {f"CERTJOB_{name.upper()}" for name in Settings.model_fields}
    rows = re.findall(r"^\| (.+?) \| ", TEXTS["docs/settings.md"], flags=re.MULTILINE)
    named = {name for text in TEXTS.values() for name in re.findall(r"CERTJOB_[A-Z_]*[A-Z]\b", text)}

    assert {name for name in settings if not any(f"`{name}`" in row for row in rows)} == set()
    assert named - settings <= {"CERTJOB_TEST_DATABASE_URL", "CERTJOB_ENV_FILE"}


@pytest.mark.parametrize("document", TEXTS)
def test_commands_and_options_in_the_documents_exist(document: str) -> None:
    """Whatever follows the word certjob in an example can be typed."""
    known = commands()
    text = re.sub(r"^    certjob [a-z ]+: .*$", "", TEXTS[document], flags=re.MULTILINE)  # a reply
    examples = re.findall(r"(?:`|^    (?:\$ )?|^[^#\n]*bin/)(certjob [a-z][^`\n#|]*)", text, flags=re.MULTILINE)
    assert examples or document not in {"README.md", "docs/commands.md", "crontab.example"}
    for found in examples:
        example = found.rstrip("'") if found.count("'") % 2 else found  # in a line of the shell's own
        name = next((name for name in sorted(known, key=len, reverse=True) if example.startswith(name)), None)
        assert name is not None, example
        options = {word.partition("=")[0] for word in shlex.split(example.replace("\\", " ")) if word.startswith("--")}
        assert options <= known[name] | {"--help"}, example


@pytest.mark.parametrize("name", [name for name in TEXTS if name.endswith(".md")])
def test_every_link_leads_somewhere(name: str) -> None:
    """To a file that is there, and to a title in it as GitHub makes anchors: small letters, no punctuation, dashes."""
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", TEXTS[name]):
        file, _, anchor = link.partition("#")
        if file.startswith("https://"):
            continue
        target = ((ROOT / name).parent / file).resolve() if file else ROOT / name
        titles = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE) if anchor else []
        if not target.exists() or (
            anchor and anchor not in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
        ):
            broken.append(link)

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


def test_titles_with_examples_differ_and_no_document_keeps_the_marks_of_a_merge() -> None:
    """An example's scene is found by the title above it; both sides of a conflict stood in a table."""
    titles = [title for text in TEXTS.values() for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)]

    assert {each.heading for each in read_all_examples() if titles.count(each.heading) > 1} == set()
    marks = re.compile(r"^(<{7}|={7}|>{7})", flags=re.MULTILINE)
    assert [name for name, text in TEXTS.items() if marks.search(text)] == []


def test_every_code_of_the_edge_function_is_in_its_contract() -> None:
    """With its HTTP status; and no code that the function does not have."""
    source = read("supabase/functions/hlf-dynamics-sync/refusal.ts")
    codes = re.findall(r"^  ([a-z_]+): (\d{3}),$", source, flags=re.MULTILINE)
    contract = read_section("docs/edge-function.md", "Contract")
    rows = re.findall(r"^\| (\d{3}) \| `([a-z_]+)` \|", contract, flags=re.MULTILINE)

    assert codes
    assert sorted((status, code) for code, status in codes) == sorted(rows)


@pytest.mark.parametrize("page", NAMING)
def test_every_file_that_is_named_exists_and_no_name_is_a_ghost(page: str) -> None:
    """Modules by their path in the package; what is written as code is written stands somewhere in the code."""
    named = set(re.findall(r"(?<![\w/.])(\w[\w./-]*(?:\.(?:py|sql|toml|ts)\b|/(?=`)))", NAMING[page]))
    words = set(re.findall(r"`([A-Za-z]\w*(?:\.\w+)*)(?:\(\))?`", NAMING[page]))
    files = [path for folder in ("certjob", "sql", "supabase", "tests") for path in (ROOT / folder).rglob("*.*")]
    files = [path for path in files if path.suffix in (".py", ".sql", ".ts")] + [ROOT / "pyproject.toml"]
    code = {word for path in files for word in re.findall(r"\w+", path.read_text())}

    assert {path for path in named if not ((ROOT / "certjob" / path).exists() or (ROOT / path).exists())} == set()
    assert {name for name in words if set(name.split(".")) - code} == set()


def test_what_the_walks_of_the_design_name_stands_where_they_say() -> None:
    """A function or a method in its module, a statement by its name."""
    walks = DESIGN.partition("## Two walks")[2].partition("\n## ")[0]
    places = re.findall(r"(\w[\w/]*\.py) (\w+(?:\.\w+)?)", walks)
    assert len(places) > 10
    for path, name in places:
        *kinds, function = name.split(".")
        text = next(file for file in (ROOT / "certjob" / path, ROOT / path) if file.exists()).read_text()
        assert all(re.search(rf"^class {kind}\b", text, re.MULTILINE) for kind in kinds), (path, name)
        assert re.search(rf"^ *(async def|def|class) {function}\b", text, re.MULTILINE), (path, name)

    verbs = {name.partition("_")[0] for name in all_statements()}
    code = "\n".join(re.findall(r"^    .*$", DESIGN.partition("## Two walks")[2], flags=re.MULTILINE))
    named = {name for name in re.findall(r"(?<![\w.])[a-z]+_\w+(?![\w./])", code) if name.partition("_")[0] in verbs}
    assert named
    assert named - set(all_statements()) - {"push_event", "cancel_reason"} == set()


def test_the_design_is_read_in_an_hour_names_every_table_and_repeats_no_docstring() -> None:
    """350 lines; a fact that stands at its function stands there alone; a new table holds facts or what follows."""
    migrations = "\n".join(path.read_text() for path in (ROOT / "sql" / "migrations").glob("*.sql"))
    tables = set(re.findall(r"^CREATE TABLE (?:public\.)?(\w+)", migrations, flags=re.MULTILINE))
    nodes = (node for path in (ROOT / "certjob").rglob("*.py") for node in ast.walk(ast.parse(path.read_text())))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = " ".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))
    known = " ".join(docstrings.split())
    sentences = re.split(r"(?<=[.:;])\s+", " ".join(DESIGN.split()))

    assert len(DESIGN.splitlines()) <= 350
    facts = DESIGN.partition("## Facts, and what is derived")[2].partition("\n## ")[0]
    assert {name for name in tables if f"`{name}`" not in facts} == set()
    assert [sentence for sentence in sentences if len(sentence.split()) > 5 and sentence in known] == []
