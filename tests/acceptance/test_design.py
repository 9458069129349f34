"""The pages for whoever changes certjob are held to the code: what they name exists, and they repeat no docstring."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from certjob.database.statements import all_statements

ROOT = Path(__file__).parents[2]
DESIGN = (ROOT / "docs" / "design.md").read_text()
PAGES = {
    "docs/design.md": DESIGN.partition("\n## What was tried")[0],
    "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text().partition("\n## What the libraries do")[0],
}
"""Without what names things that are not here."""


def module(path: str) -> Path | None:
    """A module by its path in the package, a file by its path in the repository; None: there is neither."""
    return next((found for found in (ROOT / "certjob" / path, ROOT / path) if found.exists()), None)


def definitions(path: Path) -> Iterator[str]:
    """The functions, classes and methods of a module, as ``name`` and ``Class.name``."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{node.name}.{inner.name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    """Modules by their path in the package, others by their path in the repository."""
    named = set(re.findall(r"(?<![\w/.])(\w[\w./-]*(?:\.(?:py|sql|toml|ts)\b|/(?=`)))", PAGES[page]))

    assert {path for path in named if module(path) is None} == set()


def test_what_the_walks_name_stands_where_they_say() -> None:
    """A function or a method in its module."""
    places = re.findall(r"(\w[\w/]*\.py) (\w+(?:\.\w+)?)", DESIGN.partition("## Two walks")[2].partition("\n## ")[0])
    assert len(places) > 10
    for path, name in places:
        found = module(path)
        assert found is not None
        assert name in set(definitions(found)), f"{path} {name}"


def test_the_statements_of_the_walks_exist() -> None:
    """By their names."""
    walks = "\n".join(re.findall(r"^    .*$", DESIGN.partition("## Two walks")[2], flags=re.MULTILINE))
    verbs = {name.partition("_")[0] for name in all_statements()}
    named = {name for name in re.findall(r"(?<![\w.])[a-z]+_\w+(?![\w./])", walks) if name.partition("_")[0] in verbs}

    assert named
    assert named - set(all_statements()) - {"push_event", "cancel_reason"} == set()


@pytest.mark.parametrize("page", PAGES)
def test_no_name_is_a_ghost(page: str) -> None:
    """Whatever stands in backquotes and is written as code is written, stands somewhere in the code."""
    folders = ("certjob", "sql", "supabase", "tests")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".sql", ".ts")
    ]
    code = set(re.findall(r"\w+", "\n".join(path.read_text() for path in [*files, ROOT / "pyproject.toml"])))
    names = set(re.findall(r"`([A-Za-z]\w*(?:\.\w+)*)(?:\(\))?`", PAGES[page]))

    assert {name for name in names if set(name.split(".")) - code} == set()


def test_each_table_is_said_to_hold_facts_or_what_follows_from_them() -> None:
    """A new one, too."""
    table = DESIGN.partition("## Facts, and what is derived")[2].partition("\n## ")[0]
    statements = "\n".join(path.read_text() for path in (ROOT / "sql" / "migrations").glob("*.sql"))
    made = set(re.findall(r"^CREATE TABLE (?:public\.)?(\w+)", statements, flags=re.MULTILINE))

    assert {name for name in made if f"`{name}`" not in table} == set()


def test_the_design_is_read_in_an_hour_and_repeats_no_docstring() -> None:
    """350 lines; and a fact that stands at its function stands there alone."""
    modules = [ast.parse(path.read_text()) for path in (ROOT / "certjob").rglob("*.py")]
    nodes = (node for tree in modules for node in ast.walk(tree))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = " ".join(ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented))
    known = " ".join(docstrings.split())
    sentences = re.split(r"(?<=[.:;])\s+", " ".join(DESIGN.split()))

    assert len(DESIGN.splitlines()) <= 350
    assert [sentence for sentence in sentences if len(sentence.split()) > 5 and sentence in known] == []
