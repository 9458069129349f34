"""Every example in the documents is what the command prints: scene, command, comparison."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import commands
from tests.support.docs import VARIES, Example, read_all_examples
from tests.support.docs_scenes import SCENES
from tests.support.docs_world import World

EXAMPLES = list(read_all_examples())
RUN_ELSEWHERE = {"certjob demo"}
"""It takes a while, and tests/cli/test_demo.py runs it anyway: its example is compared there."""


@pytest.fixture
def world(
    database_url: str, bare_environment: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[World]:
    made = World(
        database_url,
        empty_url=lambda: str(request.getfixturevalue("empty_database_url")),
        environment=bare_environment,
        folder=tmp_path,
    )
    yield made
    made.connection.close()


def test_every_example_has_a_scene_and_every_scene_an_example() -> None:
    """By the title that it stands under."""
    assert {example.heading for example in EXAMPLES if example.command not in RUN_ELSEWHERE} == SCENES.keys()


@pytest.mark.parametrize("heading", SCENES)
def test_the_examples_are_what_the_commands_print(heading: str, world: World) -> None:
    """One after the other, in one world; whatever a scene does after its last command, it does then."""
    examples = [example for example in EXAMPLES if example.heading == heading]

    for example, view in zip(examples, SCENES[heading](world), strict=True):
        printed = world.types(example.command, view)

        assert example.matches(printed), f"$ {example.command}\n{printed}"


def test_every_command_has_an_example() -> None:
    """A stranger has seen what each of them says before needing it."""
    known = commands()
    shown = {next(name for name in sorted(known, key=len, reverse=True) if _is(each, name)) for each in EXAMPLES}

    assert shown == known.keys()


def _is(example: Example, name: str) -> bool:
    return f"{example.command} ".startswith(f"{name} ")


@pytest.mark.parametrize(
    ("shown", "printed", "fits"),
    [
        ("a line", "a line", True),
        ("a line", "a line more", False),
        ("one\n…\nlast", "one\nlast", True),
        ("one\n…\nlast", "one\ntwo\nthree\nlast", True),
        ("one\n…", "one\ntwo\nthree", True),
        ("one … end", "one and the end", True),
        ("one … end", "one\nend", False),
        ("checked 08:00:00", "checked 08:00:01", True),
        ("5 h ago", "6 h ago", False),
    ],
)
def test_an_example_leaves_out_only_what_it_says(shown: str, printed: str, fits: bool) -> None:
    """An ellipsis, and what the short list names."""
    example = Example(heading="", command="", output=shown)

    assert example.matches(printed) is fits


def test_what_varies_is_in_some_example() -> None:
    """A pattern that nothing needs would only hide a mistake."""
    text = "\n".join(example.output for example in EXAMPLES)

    assert [name for name, pattern in VARIES.items() if not re.search(pattern, text)] == []
