"""The real Edge Function under Deno.

Deno allows the function the loopback network and its own settings, but no file and no download.
"""

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from deno import find_deno_bin

from tests.support.waiting import until

FUNCTION = Path(__file__).parents[2] / "supabase" / "functions" / "hlf-dynamics-sync"

OFFLINE = ("--no-remote", "--no-npm", "--cached-only", "--no-prompt")


def deno_environment(folder: Path) -> dict[str, str]:
    """Return variables for Deno itself: a cache in this folder, no check for updates, no colours."""
    return {"DENO_DIR": str(folder / "deno"), "HOME": str(folder), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}


class EdgeFunction:
    """The running function, as a context manager. It keeps its port."""

    def __init__(self, settings: Mapping[str, str], *, folder: Path) -> None:
        self._settings = settings
        self.changes: dict[str, str] = {}
        """The changed settings since the last restart."""
        self._folder, self._written = folder, folder / "written"
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/functions/v1/hlf-dynamics-sync"

    @property
    def output(self) -> str:
        """Return the output of the function since ``forget``."""
        return self._written.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Return the document of each request in the output."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]

    def forget(self) -> None:
        """Delete the output."""
        self._written.write_text("")

    def restart(self, **changes: str) -> None:
        """Start the function again with these changes of its settings."""
        self.__exit__()
        self.changes = changes
        self.__enter__()

    def __enter__(self) -> Self:
        allowed = ("--allow-net=127.0.0.1", f"--allow-env={','.join(self._settings)}")
        environment = deno_environment(self._folder) | {"DENO_SERVE_ADDRESS": f"tcp:127.0.0.1:{self._port}"}
        with self._written.open("ab") as written:
            before = written.tell()
            self._process = subprocess.Popen(
                [find_deno_bin(), "run", *OFFLINE, *allowed, "index.ts"],
                cwd=FUNCTION,
                env={**environment, **self._settings, **self.changes},
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
            )
        listening = re.compile(rb"Listening on http://127\.0\.0\.1:(\d+)/\s")
        until(lambda: self._process.poll() or listening.search(self._written.read_bytes(), before), seconds=60)
        found = listening.search(self._written.read_bytes(), before)
        assert found, self.output
        self._port = int(found[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
