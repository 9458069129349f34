"""The real Edge Function under Deno, behind a gateway that wakes it with the first call, as Supabase's does.

    with EdgeFunction(settings, folder=tmp_path) as function:
        ...                     # calls to function.url: the first one waits until Deno is up
        function.fall_asleep()  # the next call meets a cold start again: no token, no connection

Deno gets what the function needs and no more: the loopback network, its own settings, no file, no download.
"""

import json
import re
import select
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from deno import find_deno_bin

from tests.support.proxy import Proxy

FUNCTION = Path(__file__).parents[2] / "supabase" / "functions" / "hlf-dynamics-sync"

OFFLINE = ("--no-remote", "--no-npm", "--cached-only", "--no-prompt")


def deno_environment(folder: Path) -> dict[str, str]:
    """What Deno itself reads: its cache in this folder, no look for a newer version, no colours."""
    return {"DENO_DIR": str(folder / "deno"), "HOME": str(folder), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}


class EdgeFunction:
    """The gateway and the function behind it; a context manager."""

    def __init__(self, settings: Mapping[str, str], *, folder: Path) -> None:
        self.settings = dict(settings)
        """What the function finds in its environment when it wakes up."""
        self.cold_starts = 0
        self.output: list[str] = []
        """Every line that the function wrote, to stdout or stderr."""
        allowed = ("--allow-net=127.0.0.1", f"--allow-env={','.join(settings)}")
        self._command = [find_deno_bin(), "run", *OFFLINE, *allowed, "index.ts"]
        self._environment = deno_environment(folder) | {"DENO_SERVE_ADDRESS": "tcp:127.0.0.1:0"}
        self._waking = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []
        self._port = 0
        self._gateway = Proxy(lambda: socket.create_connection(("127.0.0.1", self.wake())))

    @property
    def url(self) -> str:
        """Where callers find it, asleep or not."""
        return f"http://127.0.0.1:{self._gateway.port}/functions/v1/hlf-dynamics-sync"

    @property
    def log(self) -> list[dict[str, Any]]:
        """The function's log so far, one document per request."""
        return [json.loads(line) for line in list(self.output) if line.startswith("{")]

    def wake(self) -> int:
        """Return the port of the running function; whoever comes first starts it, the others wait."""
        with self._waking:
            if self._process is None:
                self._start()
            return self._port

    def fall_asleep(self) -> None:
        """End the running function, if any."""
        with self._waking:
            if self._process is not None:
                self._process.terminate()
                self._process.wait(10)
                for reader in self._readers:
                    reader.join(10)
                self._process = None

    def _start(self) -> None:
        environment, pipe = self._environment | self.settings, subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, cwd=FUNCTION, env=environment, text=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
        self.cold_starts += 1
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

    def _read(self, stream: Any) -> None:
        with stream:
            self.output.extend(line.rstrip("\n") for line in stream)

    def __enter__(self) -> Self:
        self._gateway.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._gateway.__exit__()
        self.fall_asleep()
