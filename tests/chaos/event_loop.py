"""Faults inside the command's event loop, which wrap asyncio because certjob has no hook for them."""

import asyncio
import itertools
import os
import time
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM

LATE_SECONDS = 1.2
"""Longer than the portal stage waits before it looks for more work."""


def plant_fault(*, number: int, action: str, mark: str) -> None:
    """Let the n-th callback end this process, or stop the loop for a while, and create the file ``mark`` then."""
    run, callbacks = asyncio.Handle._run, itertools.count(1)

    def run_or_fail(handle: asyncio.Handle) -> None:
        if next(callbacks) == number:
            Path(mark).touch()
            for sent in {"late": (), "stop": (SIGTERM, SIGINT), "kill": (SIGKILL,)}[action]:
                os.kill(os.getpid(), sent)
            time.sleep(LATE_SECONDS if action == "late" else 0)
        run(handle)

    asyncio.Handle._run = run_or_fail  # type: ignore[assignment, method-assign]


def shorten_timeouts(seconds: float) -> None:
    """Let time-outs of a minute and more, which are those of the mail server, expire after so many seconds."""
    timeout = asyncio.timeout
    asyncio.timeout = lambda delay: timeout(seconds if delay is not None and delay >= 60 else delay)
