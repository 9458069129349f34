"""The README of the package: package indexes show it, and its links must lead to the repository."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Hatchling calls this for each build (see pyproject.toml)."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the README with absolute links."""
        files = f"{metadata['urls']['Source']}/blob/main/"
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = re.sub(r"\]\((?!https?:|#)", f"]({files}", text)
        text = text.replace(".png)", ".png?raw=true)")  # without it, the link of a picture leads to a page
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
