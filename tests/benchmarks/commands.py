"""The installed command, its time and its memory."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import installed_command

PYTHON = Path(sys.executable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A process that has ended."""

    seconds: float
    """From before it was started until it was gone."""
    peak_mb: float
    """The most memory it had at once."""
    exit_code: int
    document: dict[str, Any]
    """What it printed, if that was JSON."""
    stderr: str


@dataclass(slots=True)
class Started:
    """A process that runs; ``finish`` waits for it."""

    process: subprocess.Popen[bytes]
    output: Any
    errors: Any
    began: float

    def finish(self) -> Finished:
        _, status, usage = os.wait4(self.process.pid, 0)  # the memory of this very child
        took = time.perf_counter() - self.began
        self.process.returncode = os.waitstatus_to_exitcode(status)
        said, complained = self._said(self.output), self._said(self.errors)
        return Finished(
            seconds=took,
            peak_mb=usage.ru_maxrss / 1024,
            exit_code=self.process.returncode,
            document=json.loads(said) if said.startswith("{") else {},
            stderr=complained,
        )

    @staticmethod
    def _said(stream: Any) -> str:
        stream.seek(0)
        text: str = stream.read().decode()
        stream.close()
        return text


def start(
    command: Sequence[str | Path], *, database_url: str = "", settings: Mapping[str, str] | None = None
) -> Started:
    """Start a program as cron would: no settings but these."""
    environment = {"HOME": tempfile.gettempdir(), "PATH": "/usr/bin:/bin", "CERTJOB_DATABASE_URL": database_url}
    output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by finish; a pipe would have to be read meanwhile
    errors = tempfile.TemporaryFile()  # noqa: SIM115
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        env=environment | dict(settings or {}),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=errors,
        cwd=tempfile.gettempdir(),
    )
    return Started(process, output, errors, began)


def certjob(*arguments: str, database_url: str = "", settings: Mapping[str, str] | None = None) -> Finished:
    """Run certjob to its end; raises RuntimeError if it ended otherwise than it should."""
    finished = start([installed_command(), *arguments], database_url=database_url, settings=settings).finish()
    if finished.exit_code:
        message = (
            f"certjob {' '.join(arguments)} ended with {finished.exit_code}: {finished.stderr or finished.document}"
        )
        raise RuntimeError(message)
    return finished


def python(program: str, *arguments: str, database_url: str = "") -> Finished:
    """Run a few lines of Python in a process of their own, without certjob."""
    finished = start([PYTHON, "-c", program, *arguments], database_url=database_url).finish()
    if finished.exit_code:
        message = f"a reference ended with {finished.exit_code}: {finished.stderr}"
        raise RuntimeError(message)
    return finished
