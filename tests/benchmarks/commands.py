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
    document: dict[str, Any]
    """What it printed, if that was JSON."""


def run(
    command: Sequence[str | Path], *, database_url: str = "", settings: Mapping[str, str] | None = None
) -> Finished:
    """Run a program as cron would, with no settings but these; raises RuntimeError if it does not end with 0."""
    environment = {"HOME": tempfile.gettempdir(), "PATH": "/usr/bin:/bin", "CERTJOB_DATABASE_URL": database_url}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment | dict(settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,  # a pipe would have to be read meanwhile
            stderr=errors,
            cwd=tempfile.gettempdir(),
        )
        _, status, usage = os.wait4(process.pid, 0)  # the memory of this very child
        took = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        said, complained = output.read().decode(), errors.read().decode()
    if process.returncode:
        message = f"{' '.join(map(str, command[:3]))} ended with {process.returncode}: {complained or said}"
        raise RuntimeError(message)
    document = json.loads(said) if said.startswith("{") else {}
    return Finished(seconds=took, peak_mb=usage.ru_maxrss / 1024, document=document)


def certjob(*arguments: str, database_url: str = "", settings: Mapping[str, str] | None = None) -> Finished:
    return run([installed_command(), *arguments], database_url=database_url, settings=settings)


def python(program: str, *arguments: str) -> Finished:
    """A few lines of Python in a process of their own, without certjob."""
    return run([PYTHON, "-c", program, *arguments])
