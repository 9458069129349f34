"""The documents that people read, and their examples: a command after ``$``, and under it what is printed."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]


def read(name: str) -> str:
    """Return one of the documents, or a file beside them, by its path from the root."""
    return (ROOT / name).read_text()


def read_section(name: str, title: str) -> str:
    """Return what stands under a title, up to the next one of its rank; fail if there is no such title."""
    text = read(name)
    found = re.search(rf"^(#+) {re.escape(title)}\n", text, flags=re.MULTILINE)
    assert found is not None, f"{name} has no title {title!r}"
    return re.split(rf"^#{{1,{len(found[1])}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One command and its output, as a document shows them."""

    heading: str
    """The title above it, without the number signs."""
    command: str
    output: str

    def matches(self, printed: str) -> bool:
        """Whether this was printed, word for word.

        In an example an ellipsis stands for the rest of what is between its neighbours on a line, and alone on a line
        for any number of lines.
        """
        pattern = re.escape(self.output)
        pattern = re.sub(r"(?:\A|(?<=\n))…\\\n", r"(?:[^\n]*\n)*?", pattern)
        pattern = re.sub(r"\\\n…\Z", r"(?:\n[^\n]*)*", pattern)
        lines = (line.rstrip() for line in printed.replace("\r", "").strip().splitlines())
        return re.fullmatch(pattern.replace("…", "[^\n]*"), "\n".join(lines)) is not None


def read_all_examples() -> Iterator[Example]:
    """Yield every indented line ``$ certjob …`` of all documents, with what is indented under it."""
    heading, is_code = "", False
    command, output = "", list[str]()
    for line in (line for path in DOCUMENTS for line in [*path.read_text().splitlines(), "# end"]):
        is_code = line.startswith("    ") or (is_code and not line)
        if command and (line.startswith("    $ ") or not is_code):
            yield Example(heading=heading, command=command, output="\n".join(output).strip())
            command, output = "", []
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("    $ "):
            command = line.removeprefix("    $ ")
        elif command:
            output.append(line[4:].rstrip())
