"""The real Edge Function under Deno.

    with EdgeFunction(settings, folder=tmp_path) as function:
        ...                             # calls to function.url
        function.restart(new_settings)  # as after a cold start: no token, no connection

Deno gets what the function needs and no more: the loopback network, its own settings, no file, no download.
"""

import json
import re
import select
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from deno import find_deno_bin

FUNCTION = Path(__file__).parents[2] / "supabase" / "functions" / "hlf-dynamics-sync"

OFFLINE = ("--no-remote", "--no-npm", "--cached-only", "--no-prompt")


def deno_environment(folder: Path) -> dict[str, str]:
    """What Deno itself reads: its cache in this folder, no look for a newer version, no colours."""
    return {"DENO_DIR": str(folder / "deno"), "HOME": str(folder), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}


class EdgeFunction:
    """The function; a context manager. It keeps its port."""

    def __init__(self, settings: Mapping[str, str], *, folder: Path) -> None:
        self.settings = dict(settings)
        """What the function finds in its environment."""
        self.output: list[str] = []
        """Every line that the function wrote, to stdout or stderr."""
        self._folder = folder
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/functions/v1/hlf-dynamics-sync"

    @property
    def log(self) -> list[dict[str, Any]]:
        """The function's log so far, one document per request."""
        return [json.loads(line) for line in list(self.output) if line.startswith("{")]

    def restart(self, settings: Mapping[str, str] | None = None) -> None:
        """End it and start it anew, with these settings or the same."""
        self.__exit__()
        self.settings = dict(settings or self.settings)
        self.__enter__()

    def _read(self, stream: Any) -> None:
        with stream:
            self.output.extend(line.rstrip("\n") for line in stream)

    def __enter__(self) -> Self:
        allowed = ("--allow-net=127.0.0.1", f"--allow-env={','.join(self.settings)}")
        environment = deno_environment(self._folder) | {"DENO_SERVE_ADDRESS": f"tcp:127.0.0.1:{self._port}"}
        self._process = subprocess.Popen(
            [find_deno_bin(), "run", *OFFLINE, *allowed, "index.ts"],
            cwd=FUNCTION,
            env=environment | self.settings,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        assert select.select([self._process.stderr], [], [], 60)[0], "Deno did not start"
        first = self._process.stderr.readline()
        found = re.fullmatch(r"Listening on http://127\.0\.0\.1:(\d+)/\s*", first)
        assert found, first + self._process.stderr.read()
        self._port = int(found[1])
        streams = (self._process.stdout, self._process.stderr)
        self._readers = [threading.Thread(target=self._read, args=(stream,), daemon=True) for stream in streams]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)
        for reader in self._readers:
            reader.join(10)
