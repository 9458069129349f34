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


@pytest.mark.parametrize("page", PROMISING)
def test_what_is_promised_is_quoted_word_for_word_and_held_by_a_test_that_exists(page: str) -> None:
    """So that whoever changes the promise finds its test; a file, the function in it, or the class."""
    rows = dict(re.findall(r"^\| (?!the page says|---)(.+) \| (.+) \|$", PAGES[page], re.M))
    text = read(f"docs/{page}")
    chosen = [part for part in re.split(r"^## ", text, flags=re.M) if part.startswith(PROMISING[page])]
    points = [
        " ".join(point.split())
        for each in chosen
        for point in re.findall(r"^(?:\*|\d\.) .+?(?=\n\S|\n\n|\Z)", each, re.M | re.S)
    ]

    assert [quoted for quoted in rows if quoted not in " ".join(text.split())] == []
    assert len(chosen) == len(PROMISING[page])
    assert [point for point in points if not any(quoted in point for quoted in rows)] == []
    for held_by in rows.values():
        named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`(?: (\w+))?", held_by)
        assert named, held_by
        for file, function, kind in named:
            path, name = TESTS / file, f"def {function}(" if function else f"class {kind}:" if kind else ""
            assert path.exists(), f"docs/promises.md names {file}, which is gone; name the test that holds it now"
            assert name in path.read_text(), f"{file} has no `{name}`; name the test that holds the promise now"
