"""The documents are held to the code: what exists is described, what is described exists."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from certjob.cli.app import app
from certjob.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def commands() -> dict[str, set[str]]:
    """Every command with its options, as they are typed."""
    found: dict[str, set[str]] = {}

    def walk(command: object, name: str) -> None:
        children = getattr(command, "commands", None)
        if children is not None:
            for child_name, child in children.items():
                walk(child, f"{name} {child_name}")
            return
        found[name] = {
            option
            for parameter in getattr(command, "params", [])
            for option in parameter.opts
            if option.startswith("-")
        }

    walk(typer.main.get_command(app), "certjob")
    return found


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_is_in_the_readme(command: str) -> None:
    """In the table of commands."""
    assert f"| `{command}" in README


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_in_the_readme(name: str) -> None:
    """By its variable's name."""
    assert f"`CERTJOB_{name.upper()}`" in README


def test_the_readme_names_no_setting_that_does_not_exist() -> None:
    """A variable in the text is one that is read, or the tests' own."""
    named = set(re.findall(r"CERTJOB_([A-Z_]+)", README)) - {"TEST_DATABASE_URL"}

    assert named == {name.upper() for name in Settings.model_fields} & named


@pytest.mark.parametrize("document", ["README.md", "crontab.example"])
def test_commands_and_options_in_the_documents_exist(document: str) -> None:
    """Whatever follows the word certjob in an example can be typed."""
    known = commands()
    text = re.sub(r"^    certjob [a-z ]+: .*$", "", (ROOT / document).read_text(), flags=re.MULTILINE)  # a reply
    examples = re.findall(r"(?:`|^    (?:\$ )?|^[^#\n]*bin/)(certjob [a-z][^`\n#|]*)", text, flags=re.MULTILINE)
    assert examples
    for found in examples:
        example = found.rstrip("'") if found.count("'") % 2 else found  # in a line of the shell's own
        words = shlex.split(example.replace("\\", " "))
        name = next((name for name in sorted(known, key=len, reverse=True) if example.startswith(name)), None)
        assert name is not None, example
        for word in words:
            option = word.partition("=")[0]
            if option.startswith("--"):
                assert option in known[name] | {"--help"}, example


def test_every_link_inside_the_readme_leads_to_a_title() -> None:
    """As GitHub makes anchors: small letters, no punctuation, dashes for spaces."""
    titles = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= anchors


def test_every_package_has_its_line_in_the_layout() -> None:
    """A newcomer finds each room."""
    layout = README[README.index("## How the code is laid out") : README.index("## Contributing")]
    for package in sorted((ROOT / "certjob").iterdir()):
        if package.is_dir() and (package / "__init__.py").exists():
            assert f"      {package.name}/ " in layout, package.name
        elif package.suffix == ".py" and not package.name.startswith("__"):
            assert package.name in layout
