"""docs/promises.md: what it quotes is promised, whatever is promised is quoted, and the tests that it names exist."""

import re
from pathlib import Path

import pytest

from tests.support.docs import read

TESTS = Path(__file__).parents[1]
PAGES = dict(re.findall(r"^## (\S+)\n(.+?)(?=^## |\Z)", read("docs/promises.md"), re.M | re.S))
PROMISING = {
    "rules.md": ("The rules, exactly", "Guarantees"),
    "design.md": ("One idea", "When a mentor", "Locks", "Claim", "Outcomes of a push", "Outcomes of a mail"),
}
"""The sections each of whose points is a promise; of the others some sentences are."""


def rows(page: str) -> dict[str, str]:
    """What is quoted from a page, and where it is held."""
    return dict(re.findall(r"^\| (?!the page says|---)(.+) \| (.+) \|$", PAGES[page], re.M))


def on_one_line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", PROMISING)
def test_what_is_quoted_stands_on_the_page(page: str) -> None:
    """Word for word, so that whoever changes the promise finds its test."""
    text = on_one_line(read(f"docs/{page}"))

    assert [quoted for quoted in rows(page) if quoted not in text] == []


@pytest.mark.parametrize("page", PROMISING)
def test_every_point_of_these_sections_is_quoted(page: str) -> None:
    """A new one, too."""
    sections = re.split(r"^## ", read(f"docs/{page}"), flags=re.M)
    chosen = [section for section in sections if section.startswith(PROMISING[page])]
    points = [
        on_one_line(point)
        for each in chosen
        for point in re.findall(r"^(?:\*|\d\.) .+?(?=\n\S|\n\n|\Z)", each, re.M | re.S)
    ]

    assert len(chosen) == len(PROMISING[page])
    assert [point for point in points if not any(quoted in point for quoted in rows(page))] == []


@pytest.mark.parametrize("page", PROMISING)
def test_every_test_that_is_named_exists(page: str) -> None:
    """The file, the function in it, or the class."""
    for held_by in rows(page).values():
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`(?: (\w+))?", held_by)
        assert named, held_by
        for file, function, kind in named:
            path = TESTS / file
            assert path.exists(), f"docs/promises.md names {file}, which is gone; name the test that holds it now"
            name = f"def {function}(" if function else f"class {kind}:" if kind else ""
            assert name in path.read_text(), (
                f"docs/promises.md: {file} has no `{name}`; name the test that holds it now"
            )
