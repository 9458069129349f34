"""Read the documentation: pages and sections."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "supabase/functions/hlf-dynamics-sync/README.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", CONTRACT, *sorted((ROOT / "docs").glob("*.md"))]


def read(name: str) -> str:
    """Return the text of a file, by its path from the root."""
    return (ROOT / name).read_text()


def read_section(name: str, title: str) -> str:
    """Return the text under a title, up to the next title of the same level."""
    text = read(name)
    found = re.search(rf"^(#+) {re.escape(title)}\n", text, flags=re.MULTILINE)
    assert found is not None, f"{name} has no title {title!r}"
    return re.split(rf"^#{{1,{len(found[1])}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]
