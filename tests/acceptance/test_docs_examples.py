"""Every example in the documents is what the command prints: scene, command, comparison."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from certjob.mail import stage
from certjob.outbox.retry import constant
from tests.support.command_line import commands
from tests.support.docs import Example, read, read_all_examples
from tests.support.docs_scenes import SCENES
from tests.support.docs_world import World, cron

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


@pytest.mark.parametrize("heading", SCENES)
def test_the_examples_are_what_the_commands_print(heading: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, in one world; whatever a scene does after its last command, it does then."""
    monkeypatch.setattr(stage, "exponential", lambda **_: constant(seconds=0))  # no wait for a dead mail server
    examples = [example for example in EXAMPLES if example.heading == heading]

    for example, view in zip(examples, SCENES[heading](world), strict=True):
        printed = world.types(example.command, view)

        assert example.matches(printed), f"$ {example.command}\n{printed}"


def test_the_example_of_somebody_elses_file_can_be_loaded(world: World) -> None:
    """The command as it stands, on a file with those headers."""
    world.facts.organisation("oxford")
    headers = "property_id,Licence Commenced,Licence Expires,kind"
    (world.folder / "licences.csv").write_text(f"{headers}\nP-17,31/01/2024,30/01/2029,HMO\n")
    (command,) = re.findall(r"^    (certjob load licences\.csv (?:.*\\\n)+.*)$", read("docs/commands.md"), re.MULTILINE)

    world.types(command.replace("\\\n", " "), cron())

    stored = world.facts.rows("SELECT issued_on::text, expires_on::text FROM certificates")
    assert stored == [("2024-01-31", "2029-01-30")]


def test_every_command_has_an_example_and_every_example_a_scene() -> None:
    """A stranger has seen what each command says before needing it."""
    known = sorted(commands(), key=len, reverse=True)
    shown = {next(name for name in known if f"{each.command} ".startswith(f"{name} ")) for each in EXAMPLES}

    assert shown == set(known)
    assert {example.heading for example in EXAMPLES if example.command not in RUN_ELSEWHERE} == SCENES.keys()


def test_an_example_leaves_out_only_what_it_says() -> None:
    """An ellipsis: within its line, or, where it stands alone, any lines."""
    for shown, printed, fits in (
        ("a line", "a line more", False),
        ("one\n…\nlast", "one\ntwo\nthree\nlast", True),
        ("one … end", "one\nend", False),
        ("at 08:00:… o'clock", "at 08:00:01 o'clock", True),
    ):
        assert Example(heading="", command="", output=shown).matches(printed) is fits
