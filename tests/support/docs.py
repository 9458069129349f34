"""Read the documentation: pages, sections, and commands with their output."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_CHANGING = re.compile(r"\d{4}\\?-\d\d\\?-\d\d|\d\d:\d\d")
"""A date or a time, escaped for a pattern."""


def read(name: str) -> str:
    """Return the text of a file, by its path from the root."""
    return (ROOT / name).read_text()


def read_section(name: str, title: str) -> str:
    """Return the text under a title, up to the next title of the same level."""
    text = read(name)
    found = re.search(rf"^(#+) {re.escape(title)}\n", text, flags=re.MULTILINE)
    assert found is not None, f"{name} has no title {title!r}"
    return re.split(rf"^#{{1,{len(found[1])}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A command and its output in a document."""

    command: str
    output: str

    def matches(self, printed: str) -> bool:
        """Return whether this is the output of the command, on any day.

        An ellipsis in the example stands for the rest of a line, or alone on a line for any number of lines.
        """
        pattern = _CHANGING.sub(lambda found: re.sub(r"\d", r"\\d", found[0]), re.escape(self.output))
        pattern = re.sub(r"(?:\A|(?<=\n))…\\\n", r"(?:[^\n]*\n)*?", pattern)
        pattern = re.sub(r"\\\n…\Z", r"(?:\n[^\n]*)*", pattern)
        plain = printed.translate({ord("\r"): None, ord("\N{NO-BREAK SPACE}"): " "})
        lines = (line.rstrip() for line in plain.strip().splitlines())
        return re.fullmatch(pattern.replace("…", "[^\n]*"), "\n".join(lines)) is not None


def read_examples(section: str) -> Iterator[Example]:
    """Yield each indented line ``$ command`` of a section with the indented lines under it."""
    for block in re.findall(r"^    \$ ((?:.*\n(?=    ))*.*\n)", re.sub(r"\n(?=    \$)", "\n\n", section), re.MULTILINE):
        command, *output = block.splitlines()
        yield Example(command=command, output="\n".join(line[4:].rstrip() for line in output).strip())
