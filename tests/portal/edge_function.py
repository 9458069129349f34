"""The real Edge Function under Deno.

Deno allows the function the loopback network and its own settings, but no file and no download.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from deno import find_deno_bin

from tests.support.waiting import until

FUNCTION = Path(__file__).parents[2] / "supabase" / "functions" / "hlf-dynamics-sync"

OPTIONAL = ("AZURE_CLIENT_SECRET_UNTIL",)
"""Settings that the function asks for although they may be missing."""
OFFLINE = ("--no-remote", "--no-npm", "--cached-only", "--no-prompt")


def deno_environment(folder: Path) -> dict[str, str]:
    """Return variables for Deno itself: a cache in this folder, no check for updates, no colours."""
    return {"DENO_DIR": str(folder / "deno"), "HOME": str(folder), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}


@contextmanager
def edge_function(settings: Mapping[str, str], *, log: Path) -> Iterator[str]:
    """Run the function on a free port, and yield its URL. Its output goes to ``log``."""
    allowed = ("--allow-net=127.0.0.1", f"--allow-env={','.join([*settings, *OPTIONAL])}")
    command = [find_deno_bin(), "run", *OFFLINE, *allowed, "index.ts"]
    environment = deno_environment(log.parent) | {"DENO_SERVE_ADDRESS": "tcp:127.0.0.1:0"} | dict(settings)
    listening = re.compile(r"Listening on (http://127\.0\.0\.1:\d+/)\s")
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=FUNCTION, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            until(lambda: process.poll() is not None or listening.search(log.read_text()), seconds=60)
            found = listening.search(log.read_text())
            assert found, log.read_text()
            yield f"{found[1]}functions/v1/hlf-dynamics-sync"
        finally:
            process.terminate()
